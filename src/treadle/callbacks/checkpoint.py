"""Checkpoints of the whole fit, from which it can go on bit for bit."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from treadle.callbacks.tracker import find_column, natural_comp
from treadle.errors import UsageError
from treadle.interrupts import undivided
from treadle.loop.agreement import Agreement
from treadle.loop.events import Callback
from treadle.loop.signals import ENDING, EndRequest, Preempted
from treadle.loop.snapshot import Batches, can_seek, snapshot
from treadle.loop.state import all_generators
from treadle.run.checkpoint_writer import Writer
from treadle.run.packed import Tensors, pack

Packed = tuple[Tensors, dict[str, Any]]


@dataclass(frozen=True)
class Every:
    """When a checkpoint is due: after so many updates, epochs or minutes, whichever comes first.

    Raises:
        UsageError: if none of them is given, or one that is not above 0.

    >>> Every(updates=100, epochs=1)
    Every(updates=100, epochs=1, minutes=None)
    """

    updates: int | None = None
    epochs: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        wrong = [f"{name}={value!r}" for name, value in given.items() if not value > 0]
        if wrong or not given:
            raise UsageError(
                f"Every({', '.join(wrong)}): give updates=, epochs= or minutes=, each above 0."
            )


class CheckpointCallback(Callback):
    """Writes the whole state of the fit, for `learn.resume` to go on with.

    A fit that was killed at any moment and resumed by the same code ends with the same bits as one
    that was not: weights, state of the optimizer, losses, rows of the Recorder, order of samples,
    random numbers. `fit(checkpoint=Every(updates=100))` and its like add this callback for one fit.

    A checkpoint is taken after a training batch, also within a window of `GradientAccumulation`, or
    at the end of an epoch; and always when the fit begins and when its last epoch ends. Training
    goes on while it is written (but for the first one, so that it is known that the place will do),
    whole or not at all, and older ones go only when it is on the disk.

    **What is in it.** Model, gradients, optimizer and its hyper-parameters, what is frozen, loss
    scale, the place in the data, all random generators, the call that trains, and the state of
    each callback, as its `state_names` or its `state_dict` declare it. Of a callback of your own
    that counts something in an attribute and declares nothing, the count starts anew: a warning
    says so when the first checkpoint is taken. `state_names = ()` says that it does no harm.

    **Loaders.** One of Treadle goes on with the next batch at once, and may have other workers or
    another cache then. Of one without a `state_dict`, such as torch's, the batches before in that
    epoch are drawn again and dropped; an iterator that can be read only once cannot be resumed.

    **Leaving early.** After a signal of `signals`, or when `max_minutes` are over, the fit is left
    after the next training batch: a checkpoint is written, waited for, and `Preempted` raised, a
    `SystemExit` with the status 128 + n after the signal n and 75 after the time limit. All that
    the fit has changed is undone, and `finally` blocks run. In a validation it is left after the
    next batch of that, with a checkpoint from which the validation begins anew; between batches,
    with the next one; after the last epoch, when the fit ends. A second signal ends the process at
    once. Handlers are those of before when the fit ends; a fit in another thread than the main one
    hears no signals.

    **Several processes** write one checkpoint together, which any number of processes can go on
    with. Where each has something of its own, such as a callback's state, the one of rank r gets
    back what that of rank r modulo their old number had; processes beyond that number draw random
    numbers of their own. What any of them was asked, all obey after the same batch, the one after
    the next; the clock of rank 0 says when minutes are over. Within a window of
    `GradientAccumulation`, where each has gradients of its own, a checkpoint waits for its end.

    Args:
        every: when a checkpoint is due; None: only when the fit begins, ends or is left.
        folder: where they are written; `learn.path/"checkpoints"` if None.
        keep_last: how many of the newest stay.
        on_full: "stop" the fit when the disk is full, or "go_on" with a warning and without that
            checkpoint.
        signals: those to leave the fit for, numbers as in the module `signal`; SIGTERM and SIGUSR1
            by default. With SIGINT among them Ctrl-C does not raise KeyboardInterrupt.
        max_minutes: the time after which to leave, from when this callback is made; over all fits
            that it is in.
        keep_best: of how many epochs, the best by `monitor`, the checkpoint at their end stays too;
            each epoch then ends with one. `treadle.run.best_checkpoint` finds the best of all.
        monitor: a column of the recorder, as for `TrackerCallback`.

    Raises:
        DataError: if a checkpoint cannot be written; those before it then stand. Told before the
            first batch, when the next one is due, or when the fit ends.
        UsageError: if the state of a callback is something that a checkpoint does not hold; when
            the fit starts, if the recorder has no column `monitor`.

    >>> CheckpointCallback(Every(minutes=10), keep_last=3)
    CheckpointCallback
    """

    order = math.inf  # when the others have done what they do after a batch or an epoch
    reports = True  # a rate sweep is not to be resumed
    state_names = ("updates_then", "begun_with", "begun")

    def __init__(
        self,
        every: Every | None = None,
        folder: str | os.PathLike[str] | None = None,
        keep_last: int = 2,
        on_full: Literal["stop", "go_on"] = "stop",
        signals: Iterable[int] = ENDING,
        max_minutes: float | None = None,
        keep_best: int = 0,
        monitor: str = "valid_loss",
    ) -> None:
        self.every, self.keep_last, self.on_full = every, keep_last, on_full
        self.keep_best, self.monitor = keep_best, monitor
        self.folder = None if folder is None else Path(folder)
        self.request = EndRequest(signals, max_minutes)
        self.fit_scope: Any = None
        self.validating: Packed | None = None  # the fit as its validation began, not copied

    def before_fit(self) -> None:
        self.updates_then, self.written = self.learn.updates, time.monotonic()
        self.begun_with: dict[str, Any] | None = None
        self.begun = False
        self.silent: dict[Callback, dict[str, float]] | None = None
        self.world = self.learn.parallel.world
        self.agreement = Agreement(self.world)
        self.waits = False  # a checkpoint is due at the end of the window
        folder = self.folder or self.path / "checkpoints"
        self.fit_scope = self.scope
        self.scope.push(self._leave_at_end)
        self.scope.enter_context(self.request)
        self.column = find_column(self, self.monitor) if self.keep_best else None
        keep = {"keep_last": self.keep_last, "keep_best": self.keep_best}
        self.writer = self.scope.enter_context(
            Writer(folder, **keep, on_full=self.on_full, among=self.world)
        )

    def before_train(self) -> None:
        # A loader that cannot seek is to draw this epoch's order again.
        seeks = can_seek(self.dls.train)
        self.begun_with = None if seeks else all_generators(self.learn)
        if self.silent is None:
            self.silent = {cb: _counts(cb) for cb in self.learn.cbs if _declares_nothing(cb)}
        if not self.begun:
            self.begun = True
            self._submit(self._packed(0))
            # What is wrong with the place is told before the first batch. And files that this fit
            # writes may be those that the fit before reads at its end (SaveModelCallback): that one
            # must not be resumed any more.
            self.writer.wait()

    def before_validate(self) -> None:
        mine = self.scope is self.fit_scope  # and not a validation that a callback asked for
        self.validating = self._packed("all") if mine else None

    def after_batch(self) -> None:
        if self.learn.training:
            self._after_training()
        elif self.validating and self._all_hear():
            if left := self._agreed(self.agreement.answer)[1]:
                self._submit(self.validating)
                self._leave(left)
            self.agreement.ask(*self._own())

    def _after_training(self) -> None:
        by_time, left = self._agreed(self.agreement.answer)
        if by_time or left or self.waits or self._is_due():
            self.waits = self._is_within_window()
            if not self.waits:
                self._checkpoint(self.iter + 1)
        self.agreement.ask(*self._own())

    def _all_hear(self) -> bool:
        """Whether every process hears of this batch of a validation: of the last one, and where
        samples are skipped of any, there may be no part for some."""
        no_gaps = getattr(self.dl, "on_error", None) == "raise" and self.iter + 1 < self.n_iter
        return self.world.size == 1 or no_gaps

    def _is_within_window(self) -> bool:
        """Whether the processes have gradients that are not yet those of all."""
        window = self.learn.window
        is_open = window is not None and window.samples > 0 and not window.closed
        return self.world.size > 1 and is_open

    def _own(self) -> tuple[int, int]:
        """Whether minutes are over, by the clock of rank 0; and the status to leave with, or 0."""
        every = self.every
        minutes = every.minutes if every is not None and self.world.is_main else None
        is_over = minutes is not None and time.monotonic() - self.written >= 60 * minutes
        return int(is_over), self.request.code

    def _agreed(self, how: Callable[..., tuple[int, ...]]) -> tuple[int, Preempted | None]:
        is_over, code = how(*self._own())
        return is_over, self.request.preempted(code)

    def after_validate(self) -> None:
        self.validating = None

    def after_epoch(self) -> None:
        done = self.epoch + 1
        every = 1 if self.keep_best else self.every and self.every.epochs
        due = done == self.n_epoch or (every and done % every == 0)
        left = self._agreed(self.agreement.now)[1]
        if due or left:
            self._checkpoint(None)

    def _is_due(self) -> bool:
        updates = self.every and self.every.updates
        return bool(updates and self.learn.updates - self.updates_then >= updates)

    @undivided
    def _checkpoint(self, batches: int | None) -> None:
        self.updates_then = self.learn.updates
        self._warn_of_counts()
        self._submit(self._packed(batches), self._score() if batches is None else None)
        if left := self._agreed(self.agreement.answer)[1]:
            self._leave(left)

    def _packed(self, batches: Batches) -> Packed:
        return pack({**snapshot(self.learn, batches), "call": self._call()})

    def _submit(self, packed: Packed, score: float | None = None) -> None:
        tensors, values = packed
        self.writer.submit(self.learn.updates, tensors, {"state": values}, score=score)
        self.written = time.monotonic()

    def _score(self) -> float | None:
        """How good the epoch was, if that counts: larger is better."""
        value = None if self.column is None else self.recorder.values[-1][self.column]
        if value is None:
            return None
        return float(value) if natural_comp(self.monitor)(1, 0) else -float(value)

    def _leave(self, left: Preempted) -> None:
        self.writer.close()
        left.checkpoint = self.writer.last
        raise left

    def _leave_at_end(self, kind: object, error: BaseException | None, trace: object) -> None:
        """The fit is over. A signal that came too late for all the above is obeyed now."""
        self.fit_scope = self.validating = None
        if error is not None:
            return
        (code,) = self.agreement.now(0 if self.request.number is None else self.request.code)
        if left := self.request.preempted(code):
            left.checkpoint = self.writer.last
            raise left

    def _warn_of_counts(self) -> None:
        for cb, before in (self.silent or {}).items():
            changed = [name for name, value in _counts(cb).items() if before.get(name) != value]
            if changed and self.world.is_main:
                warnings.warn(
                    f"{cb} changes {', '.join(changed)} while it trains, and a resumed fit would "
                    f"begin with {changed[0]} anew; write state_names = ({changed[0]!r}, ...) in "
                    "its class, or state_names = () if that does no harm.",
                    UserWarning,
                    stacklevel=2,
                )
        self.silent = {}

    def _call(self) -> dict[str, Any]:
        call = getattr(self.learn, "call", None)
        told = {} if call is None else call.state_dict()
        names = "keep_last on_full keep_best monitor".split()
        own = {name: getattr(self, name) for name in names}
        return {**told, "every": self.every and asdict(self.every), "writing": own}


def _declares_nothing(cb: Callback) -> bool:
    """Whether a callback of the user's leaves open what of it is to be kept."""
    classes = [cls for cls in type(cb).__mro__ if issubclass(cls, Callback) and cls is not Callback]
    said = any({"state_names", "state_dict"} & vars(cls).keys() for cls in classes)
    return not (said or type(cb).__module__.startswith("treadle."))


def _counts(cb: Callback) -> dict[str, float]:
    """The numbers among a callback's attributes, and the lengths of its lists and dicts."""
    found: dict[str, float] = {}
    for name, value in vars(cb).items():
        if isinstance(value, (int, float)):
            found[name] = math.inf if value != value else value  # a NaN differs from itself
        elif isinstance(value, (list, dict, set, deque)):
            found[name] = len(value)
    return found
