"""Builders that several test files share."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from treadle.data import DataLoaders
from treadle.learner import Learner
from treadle.losses import CrossEntropyLossFlat
from treadle.optim import SGD


def tiny_dls() -> DataLoaders:
    """8 training batches of 16 samples and validation batches of 16, 16 and 8: 8 random features,
    the class is which of the first four is the greatest."""
    x = torch.randn(168, 8, generator=torch.Generator().manual_seed(0))
    y = x[:, :4].argmax(1)
    batches = list(zip(x.split(16), y.split(16), strict=True))
    return DataLoaders(batches[:8], batches[8:], device="cpu")


def tiny_learner(**learner_kwargs: Any) -> Learner:
    """A learner on the CPU with two linear layers and plain SGD, the same whenever it is made.

    Any argument of `Learner` may be given in place of what stands here.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    defaults = {
        "dls": tiny_dls(),
        "model": model,
        "loss_func": CrossEntropyLossFlat(),
        "opt_func": SGD,
        "lr": 0.1,
    }
    return Learner(**{**defaults, **learner_kwargs})


def copied_params(model: nn.Module) -> list[torch.Tensor]:
    """The parameters as they are now."""
    return [p.detach().clone() for p in model.parameters()]


def same_params(model: nn.Module, copies: list[torch.Tensor]) -> bool:
    """Whether the parameters are bit for bit those of `copied_params`."""
    return all(torch.equal(p, c) for p, c in zip(model.parameters(), copies, strict=True))
