"""skorch's contestant of loop.py; `side.py` makes it where skorch is installed."""

from __future__ import annotations

from typing import Any

import torch
from skorch import NeuralNetClassifier
from skorch.helper import predefined_split
from torch import Tensor, nn
from torch.utils.data import Dataset

import workloads
from common import Turn


class Ready(Dataset[tuple[Tensor, Tensor]]):
    """Batches that are made already, in what skorch asks for: a dataset of that many items."""

    def __init__(self, batches: workloads.Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batches[index]


def _batches(dataset: Ready, **_: Any) -> workloads.Batches:
    return dataset.batches


def fit(steps: int) -> Turn:
    """`partial_fit` with skorch's own callbacks, and without the table that it prints."""
    torch.set_num_threads(1)
    train, valid = Ready(workloads.batches(steps)), Ready(workloads.batches(1))

    def turn() -> dict[str, float]:
        learner = NeuralNetClassifier(
            workloads.net(),
            criterion=nn.CrossEntropyLoss,
            optimizer=torch.optim.AdamW,
            optimizer__fused=True,
            lr=workloads.LR,
            max_epochs=1,
            iterator_train=_batches,
            iterator_valid=_batches,
            train_split=predefined_split(valid),
            classes=range(4),
            verbose=0,
        ).initialize()
        return workloads.loop_turn(lambda: learner.partial_fit(train, None), steps)

    return turn
