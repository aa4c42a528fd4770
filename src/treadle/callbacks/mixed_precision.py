"""Mixed precision for as long as a callback is there."""

from __future__ import annotations

from treadle.loop.events import Callback
from treadle.loop.precision import Precision


class MixedPrecision(Callback):
    """Computes each fit in mixed precision, and afterwards as before, however the fit ends.

    `learn.to_fp16()` and `learn.to_bf16()` do so for validation and prediction as well.

    Args:
        amp_mode: "fp16" (on a CPU computed in bfloat16) or "bf16"; see `Precision`.

    Raises:
        UsageError: if `amp_mode` is no precision.

    >>> half = MixedPrecision("bf16")
    """

    order = 10

    def __init__(self, amp_mode: str = "fp16") -> None:
        Precision(amp_mode)  # a misspelt one is refused here, not when the fit starts
        self.amp_mode = amp_mode

    def before_fit(self) -> None:
        self.scope.callback(setattr, self.learn, "precision", self.precision)
        self.learn.precision = Precision(self.amp_mode)
        if self.learn.device is not None:
            self.learn.precision.to(self.learn.device)
