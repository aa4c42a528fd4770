"""The contestant of loop.py from transformers; `side.py` makes it where that is installed."""

from __future__ import annotations

import logging
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import workloads
from common import Turn

Batches = list[dict[str, Tensor]]


class Task(nn.Module):
    """The net, which returns its loss as the models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = workloads.net()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class ListTrainer(Trainer):
    """The trainer, with batches that are made already in place of its loaders."""

    def get_train_dataloader(self) -> Any:
        return self.train_dataset

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        return self.eval_dataset


def _named(batches: workloads.Batches) -> Batches:
    return [{"x": x, "labels": y} for x, y in batches]


def fit(steps: int) -> Turn:
    """`Trainer.train` with what writes files, draws or reports turned off."""
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    train, valid = _named(workloads.batches(steps)), _named(workloads.batches(1))

    def turn() -> dict[str, float]:
        with TemporaryDirectory() as scratch:  # the trainer makes a folder; nothing goes there
            model = Task()
            trainer = ListTrainer(
                model,
                TrainingArguments(
                    output_dir=scratch,
                    use_cpu=True,
                    num_train_epochs=1,
                    lr_scheduler_type="constant",
                    max_grad_norm=0.0,
                    eval_strategy="epoch",
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=train,
                eval_dataset=valid,
                optimizers=(workloads.fused_adamw(model.parameters()), None),
            )
            return workloads.loop_turn(trainer.train, steps)

    return turn
