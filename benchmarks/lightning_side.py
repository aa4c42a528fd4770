"""Lightning's contestant of loop.py; `side.py` makes it where Lightning is installed."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from torch import Tensor

import workloads
from common import Turn


class Task(LightningModule):
    """The net, its loss, logged under a name, and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = workloads.net()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        x, y = batch
        self.log("valid_loss", F.cross_entropy(self.net(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return workloads.fused_adamw(self.parameters())


class Loader:
    """A list of batches as one loader; a bare list would be taken for a list of loaders."""

    def __init__(self, batches: workloads.Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def fit(steps: int) -> Turn:
    """`Trainer.fit` with what writes files or draws turned off."""
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    train, valid = Loader(workloads.batches(steps)), Loader(workloads.batches(1))

    def turn() -> dict[str, float]:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        task = Task()
        return workloads.loop_turn(lambda: trainer.fit(task, train, valid), steps)

    return turn
