"""Watch one column of the recorder: the base of the callbacks that stop, save or slow by it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import ClassVar

from treadle.callbacks.table import no_table
from treadle.errors import CallbackError, UsageError
from treadle.loop.events import Callback

Comp = Callable[[float, float], bool]

# What is better when it is smaller goes by a name with one of these in it.
_SMALLER_IS_BETTER = ("loss", "error", "mse", "mae", "perplexity")


def natural_comp(name: str) -> Comp:
    """How two values of the column `name` compare: smaller is better for losses and errors.

    >>> natural_comp("valid_loss")(0.1, 0.2), natural_comp("accuracy")(0.1, 0.2)
    (True, False)
    """
    smaller = any(word in name for word in _SMALLER_IS_BETTER)
    return operator.lt if smaller else operator.gt


def find_column(cb: Callback, monitor: str) -> int:
    """Where `monitor` stands in the rows of the recorder.

    Raises:
        UsageError: if the recorder has no such column, or nothing fills it.
    """
    recorder = getattr(cb.learn, "recorder", None)
    if recorder is None:
        raise CallbackError(f"{cb} reads the Recorder, which is not on the learner; add it.")
    names: list[str] = recorder.metric_names[1:-1]
    if monitor not in names:
        raise UsageError(
            f"{cb} is to monitor {monitor!r}, which the recorder does not have; it has "
            f"{', '.join(names)}. Metrics are given to the Learner: metrics=[...]."
        )
    if monitor != "train_loss" and len(cb.dls) < 2:
        raise UsageError(
            f"{cb} is to monitor {monitor!r}, but there are no validation data; give some, or "
            "monitor train_loss."
        )
    return names.index(monitor)


class TrackerCallback(Callback):
    """Follows the best value of a column, epoch by epoch; for subclasses to act on.

    Args:
        monitor: a column of the recorder: "train_loss", "valid_loss" or a metric's name.
        comp: `comp(new, best)`, whether `new` is better; by default smaller is better if `monitor`
            names a loss or an error, else greater.
        min_delta: by how much, at least, a better value must be better.
        reset_on_fit: whether each fit starts without a best value.

    Attributes:
        best: the best finite value so far, None before there is one.
        new_best: whether the last epoch gave it.
        wait: for how many epochs there was none better. An epoch without a value does not count.

    Raises:
        UsageError: when a fit starts, if the recorder has no such column or nothing fills it.

    >>> class Cheer(TrackerCallback):
    ...     def after_epoch(self):
    ...         super().after_epoch()
    ...         if self.new_best:
    ...             print(f"{self.monitor} is down to {self.best}")
    """

    order = 60
    run_after = "Recorder"
    reports = True  # what it reads, the Recorder's rows, is a report
    state_names: ClassVar[Sequence[str]] = ("best", "new_best", "wait")

    def __init__(
        self,
        monitor: str = "valid_loss",
        comp: Comp | None = None,
        min_delta: float = 0.0,
        reset_on_fit: bool = True,
    ) -> None:
        self.monitor, self.min_delta, self.reset_on_fit = monitor, min_delta, reset_on_fit
        self.comp = natural_comp(monitor) if comp is None else comp
        self.best: float | None = None
        self.new_best, self.wait = False, 0

    def before_fit(self) -> None:
        self.column = find_column(self, self.monitor)
        self.new_best, self.wait = False, 0
        if self.reset_on_fit:
            self.best = None

    def after_epoch(self) -> None:
        value = self.recorder.values[-1][self.column]
        self.new_best = value is not None and math.isfinite(value) and self._is_better(value)
        if self.new_best:
            self.best, self.wait = value, 0
        elif value is not None:
            self.wait += 1

    def _is_better(self, value: float) -> bool:
        if self.best is None:
            return True
        margin = self.min_delta if self.comp(0.0, 1.0) else -self.min_delta  # smaller is better?
        return bool(self.comp(value + margin, self.best))

    def _tell(self, sentence: str) -> None:
        """Print, unless the learner is silent (`learn.no_logging()`)."""
        if self.learn.logger is not no_table:
            print(sentence, flush=True)
