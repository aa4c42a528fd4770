"""What `compare` hangs on a learner: a clock, a bar, and an end for what has diverged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from treadle.callbacks.progress import REFRESH_S
from treadle.loop.events import Callback, CancelFitException


class Clock(Callback):
    """The seconds of training, without validation, at the end of each update.

    On a GPU the device itself marks the time, and the loop does not wait for it.

    Attributes:
        seconds: by update, since the fit began.
        trained: all seconds of training.
    """

    order = 51  # after the Recorder, which counts the same updates
    reports = True
    run_valid = False

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.trained = 0.0
        self._start: Any = None
        self._marks: list[Any] = []
        self._on_gpu = False

    def before_fit(self) -> None:
        self.seconds, self.trained = [], 0.0
        self._marks = []
        self._on_gpu = self.learn.device is not None and self.learn.device.type == "cuda"

    def before_train(self) -> None:
        self._start, self._marks = self._mark(), []

    def after_step(self) -> None:
        self._marks.append(self._mark())

    def after_train(self) -> None:
        self.settle()

    def settle(self) -> None:
        """Count what was marked since the pass began; of a pass that broke off too."""
        if not self._marks:
            return
        end = self._mark()
        self.seconds += [self.trained + self._between(self._start, mark) for mark in self._marks]
        self.trained += self._between(self._start, end)
        self._marks = []

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        if not self._on_gpu:
            return float(end - start)
        end.synchronize()  # waits for the device, once an epoch: the first such call has the rest
        return float(start.elapsed_time(end)) / 1000


class StopWhereDiverged(Callback):
    """Ends the fit after an epoch in which the training loss was not finite.

    Attributes:
        why: a clause that says so, or None.
    """

    order = 52
    run_after = "Recorder"
    reports = True

    def __init__(self) -> None:
        self.why: str | None = None

    def before_fit(self) -> None:
        self.why = None

    def after_epoch(self) -> None:
        losses = self.recorder.raw_losses  # the epoch's row has waited for the device already
        first = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if first is not None:
            self.why = f"it diverged: the training loss was {losses[first]} at update {first + 1}"
            raise CancelFitException


class Follow(Callback):
    """Calls `tell(updates, epoch)` while it trains, a few times a second."""

    order = 61
    reports = True
    run_valid = False

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self.tell = tell

    def before_fit(self) -> None:
        self._told = 0.0

    def after_batch(self) -> None:
        if time.perf_counter() - self._told >= REFRESH_S:
            self._told = time.perf_counter()
            self.tell(self.epoch * self.n_iter + self.iter + 1, self.epoch)


class Glimpse(Callback):
    """Ends the fit after two batches: enough to have what is compiled or allocated ready."""

    order = 98
    reports = True

    def after_batch(self) -> None:
        if self.iter >= 1:
            raise CancelFitException

    def after_train(self) -> None:
        raise CancelFitException
