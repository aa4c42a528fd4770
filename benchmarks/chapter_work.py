"""The work of chapter.py, the same for both libraries: no import of any but torch."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import torch
from torch import nn

# All of each picture: fastai draws one crop for a whole batch, which helps less than one a picture.
PRESIZE, SIZE, MIN_SCALE = 80, 64, 1.0
BATCH_SIZE = 32
CLASSES = 10
THREADS = 1  # so that the one side's idle threads hold no core while the other side works

ROWS: dict[str, dict[str, float | str]] = {
    "baseline Adam": {"lr": 0.003},
    "plain SGD": {"lr": 0.03},
    "SGD from one stepper": {"lr": 0.03, "fit": "fit"},
    "momentum": {"lr": 0.03},
    "RMSProp": {"lr": 0.003},
    "Adam from steppers": {"lr": 0.003},
}
"""The chapter's optimizers and rates; `fit` is a constant rate, all else one cycle."""


def net() -> nn.Module:
    """Four convolutions with batch norm, the picture halved by each: 98,000 weights. They are
    drawn from torch's generator as it is."""
    widths = [3, 16, 32, 64, 128]
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        conv = nn.Conv2d(n_in, n_out, 3, stride=1 if i else 2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] * (i > 0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES)]
    return nn.Sequential(*layers, *head)


def net_of(seed: int) -> nn.Module:
    """The net with the weights of `seed`; nothing else is drawn in between."""
    torch.manual_seed(seed)
    return net()


def fingerprint(model: nn.Module) -> str:
    """Of all its weights, bit by bit."""
    found = hashlib.sha256()
    for p in model.parameters():
        found.update(p.detach().numpy().tobytes())
    return found.hexdigest()[:16]
