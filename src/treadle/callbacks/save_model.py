"""Keep the weights of the best epoch."""

from __future__ import annotations

from treadle.callbacks.tracker import Comp, TrackerCallback
from treadle.errors import UsageError


class SaveModelCallback(TrackerCallback):
    """Saves the model whenever `monitor` is better than ever, and loads the best when the fit ends.

    If no epoch gave a finite value, nothing was saved and nothing is loaded. Weights go through
    `learn.save`, that is to `path/model_dir/fname.safetensors`.

    Args:
        monitor, comp, min_delta, reset_on_fit: as for `TrackerCallback`.
        fname: the name to save under.
        every_epoch: save after every epoch, or every so many (an int), as `fname_0`, `fname_1`,
            ...; nothing is monitored or loaded.
        at_end: save once, the weights with which the fit ends; nothing is monitored or loaded.

    Attributes:
        last_saved_path: the file written last, None before.

    Raises:
        UsageError: if both `every_epoch` and `at_end` are asked for.

    >>> keep = SaveModelCallback(monitor="accuracy", fname="best")
    """

    order = TrackerCallback.order + 1
    state_names = ("last_saved_path",)

    def __init__(
        self,
        monitor: str = "valid_loss",
        comp: Comp | None = None,
        min_delta: float = 0.0,
        fname: str = "model",
        every_epoch: bool | int = False,
        at_end: bool = False,
        reset_on_fit: bool = True,
    ) -> None:
        super().__init__(monitor, comp, min_delta, reset_on_fit)
        if every_epoch and at_end:
            raise UsageError("SaveModelCallback got every_epoch and at_end; give one of them.")
        self.fname, self.every_epoch, self.at_end = fname, every_epoch, at_end
        self.keeps_best, self.last_saved_path = not (every_epoch or at_end), None

    def before_fit(self) -> None:
        if self.keeps_best:
            super().before_fit()

    def after_epoch(self) -> None:
        if self.every_epoch and self.epoch % self.every_epoch == 0:
            self._save(f"{self.fname}_{self.epoch}")
        if self.keeps_best:
            super().after_epoch()
            if self.new_best:
                self._save(self.fname)

    def after_fit(self) -> None:
        if self.at_end:
            self._save(self.fname)
        elif self.keeps_best and self.best is not None:
            self.learn.load(self.fname)

    def _save(self, name: str) -> None:
        self.last_saved_path = self.learn.save(name)
