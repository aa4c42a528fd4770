"""Large batches in small memory."""

from __future__ import annotations

import math

from treadle.errors import UsageError
from treadle.loop.events import Callback
from treadle.loop.window import Window


class GradientAccumulation(Callback):
    """Takes a step only once `n_acc` samples have been seen, with the gradient of the mean over all
    of them: the gradient that one batch of all these samples would have had, for any split.

    **The window.** Each batch counts by its number of samples; a step is due when they are at least
    `n_acc` (with batches of 12 and `n_acc=16`: after 24). The last batch of an epoch makes the step
    due with what is there, correctly averaged; nothing is carried into the next epoch.
    `before_step` and `after_step` come once a window, and clipping, logging and the loss scaler of
    fp16 see its averaged gradient. `learn.updates`, schedules and the Recorder count windows.

    **Cancelled batches.** One that is cancelled before its backward pass contributes nothing. One
    that is cancelled after it takes the window with it, as its gradient cannot be told from the
    others. What a cancelled pass (`CancelTrainException`) has gathered is dropped.

    **What is not the same as a large batch.** Batch norm normalises each small batch by itself, as
    does every layer that mixes samples. A loss that averages over something else than samples, such
    as words or class weights, is averaged over that within each batch, and over samples across
    them.

    Args:
        n_acc: samples for a step; 1 or more.

    Raises:
        UsageError: if `n_acc` is below 1; when a fit starts, if the loss adds up its samples
            (`reduction="sum"`) instead of averaging them.

    >>> large = GradientAccumulation(n_acc=256)
    """

    order = -20  # has the size of the first batch before schedules ask how many updates there are
    run_valid = False
    state_names = ("planned",)

    def __init__(self, n_acc: int = 32) -> None:
        if n_acc < 1:
            raise UsageError(f"GradientAccumulation(n_acc={n_acc}): give 1 sample or more.")
        self.n_acc = n_acc

    def before_fit(self) -> None:
        if getattr(self.loss_func, "reduction", "mean") == "sum":
            raise UsageError(
                "GradientAccumulation weighs batches by their samples, which suits a loss that "
                'averages over them, and this one has reduction="sum"; take reduction="mean".'
            )
        self.scope.callback(setattr, self.learn, "window", self.learn.window)
        self.learn.window = Window(self.n_acc)
        self.planned = False
        train = self.dls.train
        sizes = (getattr(train, name, None) for name in ("total_bs", "bs", "batch_size"))
        if size := next(filter(None, sizes), None):
            self._plan(size)

    def before_batch(self) -> None:
        if not self.planned and self.yb:
            self._plan(self.parallel.samples(self.learn))

    def _plan(self, batch_size: int) -> None:
        """Count the updates, given that all batches but the last of an epoch are of one size."""
        batches = math.ceil(self.n_acc / batch_size)
        n_epoch = max(self.n_epoch, 1)
        in_epoch = math.ceil(self.learn.planned_updates / n_epoch / batches)
        self.learn.planned_updates, self.planned = n_epoch * in_epoch, True
