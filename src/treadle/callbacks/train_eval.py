"""The model in training mode to train, in evaluation mode to validate."""

from __future__ import annotations

from typing import Any

from treadle.loop.events import Callback


class TrainEvalCallback(Callback):
    """Dropout and batch norm as each pass needs them, and the weights too where the optimizer keeps
    others to be judged by, as a schedule-free one does. On every learner by default."""

    order = -10

    def before_train(self) -> None:
        self.model.train()
        _call_if_there(self.opt, "train")

    def before_validate(self) -> None:
        self.model.eval()
        _call_if_there(self.opt, "eval")


def _call_if_there(opt: Any, mode: str) -> None:
    switch = getattr(opt, mode, None)
    if switch is not None:
        switch()
