"""Checkpoints of the whole fit, from which it can go on bit for bit."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from treadle.errors import UsageError
from treadle.loop.events import Callback
from treadle.loop.snapshot import all_generators, can_seek, snapshot
from treadle.run.checkpoint_writer import Writer
from treadle.run.packed import pack


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

    A checkpoint is taken after a training batch, also within a window of `GradientAccumulation`,
    or at the end of an epoch; and always when the last epoch ends. Training goes on while it is
    written, whole or not at all, and older ones go only when it is on the disk.

    **What is in it.** Model, gradients, optimizer and its hyper-parameters, what is frozen, loss
    scale, the place in the data, all random generators, the call that trains, and the state of
    each callback, as its `state_names` or its `state_dict` declare it. Of a callback of your own
    that counts something in an attribute and declares nothing, the count starts anew: a warning
    says so when the first checkpoint is taken. `state_names = ()` says that it does no harm.

    **Loaders.** One of Treadle goes on with the next batch at once, and may have other workers or
    another cache then. Of one without a `state_dict`, such as torch's, the batches before in that
    epoch are drawn again and dropped; an iterator that can be read only once cannot be resumed.

    Args:
        every: when a checkpoint is due.
        folder: where they are written; `learn.path/"checkpoints"` if None.
        keep_last: how many of the newest stay.
        on_full: "stop" the fit when the disk is full, or "go_on" with a warning and without that
            checkpoint.

    Raises:
        DataError: if a checkpoint cannot be written; those before it then stand. Told when the
            next one is due, or when the fit ends.
        UsageError: if the state of a callback is something that a checkpoint does not hold.

    >>> CheckpointCallback(Every(minutes=10), keep_last=3)
    CheckpointCallback
    """

    order = math.inf  # when the others have done what they do after a batch or an epoch
    run_valid = False
    reports = True  # a rate sweep is not to be resumed
    state_names = ("updates_then", "begun_with")

    def __init__(
        self,
        every: Every,
        folder: str | os.PathLike[str] | None = None,
        keep_last: int = 2,
        on_full: Literal["stop", "go_on"] = "stop",
    ) -> None:
        self.every, self.keep_last, self.on_full = every, keep_last, on_full
        self.folder = None if folder is None else Path(folder)

    def before_fit(self) -> None:
        self.updates_then, self.written = self.learn.updates, time.monotonic()
        self.begun_with: dict[str, Any] | None = None
        self.silent: dict[Callback, dict[str, float]] | None = None
        folder = self.folder or self.path / "checkpoints"
        writer = Writer(folder, keep_last=self.keep_last, on_full=self.on_full)
        self.writer = self.scope.enter_context(writer)

    def before_train(self) -> None:
        # A loader that cannot seek is to draw this epoch's order again.
        seeks = can_seek(self.dls.train)
        self.begun_with = None if seeks else all_generators(self.learn)
        if self.silent is None:
            self.silent = {cb: _counts(cb) for cb in self.learn.cbs if _declares_nothing(cb)}

    def after_batch(self) -> None:
        every = self.every
        by_updates = every.updates and self.learn.updates - self.updates_then >= every.updates
        by_time = every.minutes and time.monotonic() - self.written >= 60 * every.minutes
        if by_updates or by_time:
            self._write(batches=self.iter + 1)

    def after_epoch(self) -> None:
        done = self.epoch + 1
        if done == self.n_epoch or (self.every.epochs and done % self.every.epochs == 0):
            self._write(batches=None)

    def _write(self, batches: int | None) -> None:
        self.updates_then = self.learn.updates
        self._warn_of_counts()
        state = snapshot(self.learn, batches)
        tensors, values = pack({**state, "call": self._call()})
        self.writer.submit(self.learn.updates, tensors, {"state": values})
        self.written = time.monotonic()

    def _warn_of_counts(self) -> None:
        for cb, before in (self.silent or {}).items():
            changed = [name for name, value in _counts(cb).items() if before.get(name) != value]
            if changed:
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
        own = {"keep_last": self.keep_last, "on_full": self.on_full}
        return {**told, "every": asdict(self.every), "writing": own}


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
            found[name] = value
        elif isinstance(value, (list, dict, set, deque)):
            found[name] = len(value)
    return found
