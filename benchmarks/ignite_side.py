"""Ignite's contestant of loop.py; `side.py` makes it where Ignite is installed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Loss

import workloads
from common import Turn

LOG_EVERY = 100


def fit(steps: int) -> Turn:
    """The supervised trainer, which reads the loss each step, and an evaluator behind it."""
    torch.set_num_threads(1)
    train, valid = workloads.batches(steps), workloads.batches(1)

    def turn() -> dict[str, float]:
        model = workloads.net()
        opt = workloads.fused_adamw(model.parameters())
        trainer = create_supervised_trainer(model, opt, F.cross_entropy, device="cpu")
        evaluator = create_supervised_evaluator(model, {"loss": Loss(F.cross_entropy)}, "cpu")
        losses: list[object] = []

        @trainer.on(Events.ITERATION_COMPLETED(every=LOG_EVERY))
        def log(engine: Engine) -> None:
            losses.append(engine.state.output)

        @trainer.on(Events.EPOCH_COMPLETED)
        def validate() -> None:
            evaluator.run(valid)

        return workloads.loop_turn(lambda: trainer.run(train, max_epochs=1), steps)

    return turn
