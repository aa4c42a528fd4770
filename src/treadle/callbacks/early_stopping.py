"""End a fit that no longer improves."""

from __future__ import annotations

from treadle.callbacks.tracker import Comp, TrackerCallback
from treadle.loop.events import CancelFitException


class EarlyStoppingCallback(TrackerCallback):
    """Ends the fit when `monitor` was no better than its best for `patience` epochs in a row.

    The other arguments are those of `TrackerCallback`. The weights are then the last ones, not the
    best: `SaveModelCallback` beside this one brings those back.

    >>> stop = EarlyStoppingCallback(monitor="accuracy", min_delta=0.01, patience=3)
    """

    order = TrackerCallback.order + 3  # after those that save, log or slow down

    def __init__(
        self,
        monitor: str = "valid_loss",
        comp: Comp | None = None,
        min_delta: float = 0.0,
        patience: int = 1,
        reset_on_fit: bool = True,
    ) -> None:
        super().__init__(monitor, comp, min_delta, reset_on_fit)
        self.patience = patience

    def after_epoch(self) -> None:
        super().after_epoch()
        if self.wait >= max(self.patience, 1):
            self._tell(f"No better {self.monitor} since epoch {self.epoch - self.wait}: stopped.")
            raise CancelFitException
