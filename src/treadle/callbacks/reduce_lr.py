"""Lower the learning rate where progress ends."""

from __future__ import annotations

from treadle.callbacks.tracker import Comp, TrackerCallback
from treadle.errors import CallbackError, UsageError


class ReduceLROnPlateau(TrackerCallback):
    """Divides the learning rates by `factor` after `patience` epochs without a better `monitor`.

    Args:
        monitor, comp, min_delta, reset_on_fit: as for `TrackerCallback`.
        patience: how many epochs in a row; counted anew after each reduction.
        factor: what the rate of every parameter group is divided by; above 1.
        min_lr: no rate is brought below it.

    Raises:
        UsageError: if `factor` is not above 1.
        CallbackError: when a fit starts whose schedule sets the rate before every batch, as that
            of `fit_one_cycle` does.

    >>> slow_down = ReduceLROnPlateau(patience=2, factor=5, min_lr=1e-5)
    """

    order = TrackerCallback.order + 2

    def __init__(
        self,
        monitor: str = "valid_loss",
        comp: Comp | None = None,
        min_delta: float = 0.0,
        patience: int = 1,
        factor: float = 10.0,
        min_lr: float = 0,
        reset_on_fit: bool = True,
    ) -> None:
        super().__init__(monitor, comp, min_delta, reset_on_fit)
        if not factor > 1:
            raise UsageError(f"ReduceLROnPlateau divides by factor={factor}; give one above 1.")
        self.patience, self.factor, self.min_lr = patience, factor, min_lr

    def before_fit(self) -> None:
        super().before_fit()
        schedules = [cb for cb in self.learn.cbs if "lr" in vars(cb).get("scheds", ())]
        if schedules:
            raise CallbackError(
                f"ReduceLROnPlateau and {schedules[0]} both set lr, so reductions would be "
                "overwritten; train with learn.fit, or without ReduceLROnPlateau."
            )

    def after_epoch(self) -> None:
        super().after_epoch()
        if self.wait >= max(self.patience, 1):
            self.wait = 0
            old = [hypers["lr"] for hypers in self.opt.hypers]
            new = [min(lr, max(lr / self.factor, self.min_lr)) for lr in old]
            if new != old:
                self.opt.set_hyper("lr", new)
                self._tell(
                    f"No better {self.monitor}: lr is {new[-1]:.4g} after epoch {self.epoch}."
                )
