"""The model in training mode to train, in evaluation mode to validate."""

from __future__ import annotations

from treadle.loop.events import Callback


class TrainEvalCallback(Callback):
    """Dropout and batch norm as each pass needs them. On every learner by default."""

    order = -10

    def before_train(self) -> None:
        self.model.train()

    def before_validate(self) -> None:
        self.model.eval()
