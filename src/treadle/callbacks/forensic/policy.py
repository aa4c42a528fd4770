"""Watch a fit for numbers that are none: what the callbacks of all policies share."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

from torch import Tensor
from torch.nn.utils import get_total_norm

from treadle.callbacks.forensic.finding import NonFinite, spoilt_weights, surely_finite
from treadle.callbacks.forensic.replay import KeptState, Replayed, replay
from treadle.errors import CallbackError, TreadleError
from treadle.loop.events import Callback
from treadle.shards import local


class NonFiniteWarning(RuntimeWarning):
    """A number became infinite or not a number; says where it came from, and what is done.

    `warnings.simplefilter("error", NonFiniteWarning)` makes it an exception that leaves `fit`.
    """


class NonFiniteError(TreadleError, FloatingPointError):
    """A number became infinite or not a number, and the fit is left.

    Attributes:
        found: what is known of it.
    """

    def __init__(self, found: NonFinite, outcome: str) -> None:
        super().__init__(f"{found} {outcome}")
        self.found = found


class NonFiniteCallback(Callback):
    """Looks at the loss and the gradients of each training batch, at the weights before the first,
    and at the loss and the metrics of each validation. A subclass says what follows, by `act`.

    Looking waits for the device once a batch. Several processes tell one another what they see, so
    that all do the same.

    Attributes:
        found: the last number that was none, as a `NonFinite`; None as long as all is well.

    Raises:
        CallbackError: when a fit starts, if another one that watches is on the learner.
    """

    order = -9
    reports = True  # a rate sweep is meant to diverge, and ends by its own rule
    run_valid = False
    found: NonFinite | None = None

    @abstractmethod
    def act(self, found: NonFinite) -> NoReturn:
        """A batch is not finite; its gradients are there, and buffers are as before it. Leave it
        by an exception."""

    def end(self, found: NonFinite, outcome: str) -> NoReturn:
        """End the fit."""
        raise NonFiniteError(found, outcome)

    def note(self, found: NonFinite, outcome: str) -> None:
        """Say it, and go on."""
        told: AbstractContextManager[Any] = nullcontext()
        if not self.parallel.world.is_main:  # which is silent, but raises it where a filter says so
            told = warnings.catch_warnings(record=True)
        with told:
            # Each time, not once a place and text as `warn` does: the same fit may be run again.
            warnings.warn_explicit(f"{found} {outcome}", NonFiniteWarning, __file__, 0)

    note_metric = note

    def before_fit(self) -> None:
        others = [cb for cb in self.learn.cbs if isinstance(cb, NonFiniteCallback)]
        if len(others) > 1:
            raise CallbackError(f"{others[0]} and {others[1]} watch the same; keep one of them.")
        self.found, self.replaying = None, False
        self.kept = KeptState(self.model)
        metrics = Callback(after_epoch=lambda _: self._look_at_metrics())
        metrics.run_after, metrics.order, metrics.reports = "Recorder", 0, True
        self.learn.add_cbs([self.kept, metrics])
        self.scope.callback(self.learn.remove_cbs, [self.kept, metrics])

    def before_epoch(self) -> None:
        self.params = list(self.model.parameters())
        first = self.epoch == self.learn.first_epoch
        if first and (spoilt := spoilt_weights(self.model, self.parallel.world)):
            value, where = next(iter(spoilt.values())), "before the first batch"
            self.found = NonFinite("a weight", value, self.epoch, None, where, None, list(spoilt))
            self.end(self.found, "No batch was trained: load or make the weights anew.")

    def after_backward(self) -> None:
        if self.replaying:
            raise Replayed
        loss = self.loss.detach()
        scaled = self.precision.scaler.is_enabled()  # scaled gradients may be infinite
        grads = [] if scaled else [p.grad for p in self.params if p.grad is not None]
        if seen := self._seen(loss, grads):
            self.replaying = True
            self.found = replay(self.learn, self.kept, self, *seen)
            self.replaying = False
            self.act(self.found)

    def _seen(self, loss: Tensor, grads: list[Tensor]) -> tuple[str, float] | None:
        """What is not finite in any process, and its value."""
        here = self.parallel.world
        if not any(here.all(not surely_finite([loss, *grads]))):
            return None
        return next((seen for seen in here.all(_not_finite(loss, grads)) if seen), None)

    def _look_at_metrics(self) -> None:
        recorder = getattr(self.learn, "recorder", None)
        if recorder is None or not recorder.values:
            return
        for name, value in zip(recorder.metric_names[2:-1], recorder.values[-1][1:], strict=True):
            if value is not None and not math.isfinite(value):
                where = f"after epoch {self.epoch}"
                self.found = NonFinite(name, value, self.epoch, None, where)
                self.note_metric(self.found, "It does not count as a best value.")


def _not_finite(loss: Tensor, grads: list[Tensor]) -> tuple[str, float] | None:
    """What is not, and its value."""
    if not loss.isfinite():
        return "the loss", float(loss)
    parts = [part for part in map(local, grads) if part.numel()]
    greatest = float(get_total_norm(parts, math.inf))
    return None if math.isfinite(greatest) else ("a gradient", greatest)
