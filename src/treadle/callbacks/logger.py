"""Hand what the Recorder keeps to a tracker of experiments: the base of those that know one."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from numbers import Number
from typing import Any

from treadle.errors import CallbackError, UsageError
from treadle.loop.events import Callback

Row = tuple[int, dict[str, float]]
"""A step and the numbers that belong to it, by name."""


class LoggerCallback(Callback):
    """Writes the loss and the hyper-parameters of every step, and the table of every epoch.

    They are read from the Recorder in groups of `every` steps, so training waits for the device
    once a group. However the fit ends, what was recorded is written first. Several fits with one
    callback count their steps on, so `fine_tune` is one curve.

    What is written, by name: `train/loss`, `train/smooth_loss` and `hyper/lr`, ... (of several
    parameter groups `hyper/lr_0`, `hyper/lr_1`, ...) at each step, counted from 0; and `epoch/...`
    with the columns of the table at the last step of each epoch.

    A subclass says how: by `open()`, `write(rows)` and `close(error)`.

    Raises:
        UsageError: if `every` is below 1.
        CallbackError: when a fit starts, if the learner has no Recorder.
    """

    order = 60
    run_after = "Recorder"
    run_valid = False
    reports = True
    on_main = True
    state_names = ("written", "waiting", "earlier")

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise UsageError(f"{self} writes every so many steps; every={every} is below 1.")
        self.every = every
        self.earlier = 0  # steps of earlier fits

    @abstractmethod
    def open(self) -> None:
        """Get ready to write: a fit starts."""

    @abstractmethod
    def write(self, rows: list[Row]) -> None:
        """Write these now: if the process ends the next moment, they are not to be lost."""

    @abstractmethod
    def close(self, error: BaseException | None) -> None:
        """The fit has ended, by this exception if it was one."""

    def before_fit(self) -> None:
        if getattr(self.learn, "recorder", None) is None:
            raise CallbackError(f"{self} reads the Recorder, which is not on the learner; add it.")
        self.written = self.waiting = 0
        self.open()
        self.scope.push(self._end)

    def after_step(self) -> None:
        self.waiting += 1
        if self.waiting >= self.every:
            self._write_steps()

    def after_epoch(self) -> None:
        self._write_steps()
        columns = zip(self.recorder.metric_names[1:-1], self.recorder.values[-1], strict=True)
        values = {f"epoch/{name}": value for name, value in columns if value is not None}
        self.write([(max(self.earlier + self.written - 1, 0), values)])

    def _write_steps(self) -> None:
        recorder, start = self.recorder, self.written
        losses, smooth, columns = recorder.raw_losses, recorder.losses, self._hyper_columns()
        rows: list[Row] = []
        for i in range(start, len(losses)):
            hypers = {name: column[i] for name, column in columns.items()}
            numbers = {name: value for name, value in hypers.items() if isinstance(value, Number)}
            losses_now = {"train/loss": losses[i], "train/smooth_loss": smooth[i]}
            rows.append((self.earlier + i, losses_now | numbers))
        self.written, self.waiting = len(losses), 0
        if rows:
            self.write(rows)

    def _hyper_columns(self) -> dict[str, list[Any]]:
        groups = self.recorder.hypers
        return {
            f"hyper/{name}_{g}" if len(groups) > 1 else f"hyper/{name}": column
            for g, hypers in enumerate(groups)
            for name, column in hypers.items()
        }

    def _end(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            self._write_steps()
        finally:
            self.earlier += self.written
            self.close(error)


def imported(module: str, cb: Callback, extra: str) -> Any:
    """A module of an optional package.

    Raises:
        UsageError: if it is not installed, with what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{cb} needs the package {extra}, which cannot be imported ({error}); install it with "
            f"pip install 'treadle[{extra}]'."
        ) from error
