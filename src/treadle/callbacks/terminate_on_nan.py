"""Stop before a number that is none reaches the weights."""

from __future__ import annotations

import math
import warnings

import torch
from torch.nn.utils import get_total_norm

from treadle.loop.events import Callback, CancelFitException


class TerminateOnNaNCallback(Callback):
    """Ends the fit at the first training loss or gradient that is infinite or not a number.

    It looks before the step, so the parameters are still those of the last good update (running
    statistics, as of batch norm, have seen the batch). Looking waits for the device twice a batch.
    Where fp16 scales the loss, overflowing gradients are the scaler's daily business and only the
    loss is looked at.
    """

    order = -9
    reports = True  # a rate sweep is meant to diverge, and ends by its own rule

    def before_step(self) -> None:
        self._end_unless_finite(self.loss, "the loss")
        if not self.precision.scaler.is_enabled():
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            greatest = get_total_norm(grads, math.inf)  # a sum of squares might overflow by itself
            self._end_unless_finite(greatest, "a gradient")

    def _end_unless_finite(self, number: torch.Tensor, what: str) -> None:
        if torch.isfinite(number):  # waits for the device
            return
        spoilt = [
            name
            for name, p in self.model.named_parameters()
            if p.grad is not None and not torch.isfinite(p.grad).all()
        ]
        where = spoilt[0] if len(spoilt) == 1 else f"{len(spoilt)} parameters"
        warnings.warn(
            f"{what} became {number.item()} at epoch {self.epoch}, batch {self.iter}, and the "
            f"gradient of {where} is not finite; training ended before this batch changed the "
            "weights. A lower learning rate is the usual mend.",
            RuntimeWarning,
            stacklevel=2,
        )
        raise CancelFitException
