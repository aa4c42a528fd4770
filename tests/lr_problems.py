"""Twelve small problems with a known range of good learning rates, for the rate finder.

They differ in loss, scale, batch size, network and optimizer. Each has noise that no model can
learn, so that "within 10 % of the best loss" means something. None was looked at when the finder's
rule was chosen; that was done on others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from treadle.data import DataLoader, DataLoaders
from treadle.learner import Learner
from treadle.optim import SGD, Adam, AdamW, RMSProp

GRID = [10 ** (k / 2) for k in range(-6, 3)]  # 1e-3 to 10, two a decade
VALID = 300

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """`good` is the range of the rates of `GRID` whose final loss is within 10 % of the best, with
    `fit_one_cycle` and seed 0, as measured (torch 2.15)."""

    name: str
    data: Callable[[torch.Generator], Data]
    model: Callable[[], nn.Module]
    loss: Callable[..., Tensor]
    opt: Callable[..., Any]
    bs: int
    epochs: int
    good: tuple[float, float]

    def learner(self, seed: int) -> Learner:
        """The data are the same for every seed; model and order of the batches are not."""
        x, y = self.data(torch.Generator().manual_seed(12))
        torch.manual_seed(seed)
        train = torch.utils.data.TensorDataset(x[VALID:], y[VALID:])
        valid = torch.utils.data.TensorDataset(x[:VALID], y[:VALID])
        dls = DataLoaders(
            DataLoader(train, self.bs, shuffle=True, drop_last=True, device="cpu", num_workers=0),
            DataLoader(valid, VALID, device="cpu", num_workers=0),
        )
        return Learner(dls, self.model(), self.loss, self.opt)

    def final_loss(self, lr: float, seed: int = 0, fit: str = "fit_one_cycle") -> float:
        """The validation loss after training at `lr`; infinite if it diverged."""
        learn = self.learner(seed)
        with learn.no_logging():
            getattr(learn, fit)(self.epochs, lr)
        loss = learn.recorder.values[-1][1]
        return loss if math.isfinite(loss) else math.inf


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(n_in, n_out), *([nn.BatchNorm1d(n_out)] if norm else []), act()]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


def plane(g: torch.Generator) -> Data:
    """A linear function of correlated inputs."""
    x = torch.randn(900, 8, generator=g) @ torch.randn(8, 8, generator=g)
    return x, x @ torch.randn(8, 1, generator=g) + 2 * torch.randn(900, 1, generator=g)


def counts(g: torch.Generator) -> Data:
    """Counts whose logarithm is linear."""
    x = torch.randn(900, 6, generator=g)
    return x, torch.poisson((0.5 * x[:, :1] - 0.3 * x[:, 1:2] + 0.5).exp(), generator=g)


def outliers(g: torch.Generator) -> Data:
    """A product, and one target in ten far off."""
    x = torch.randn(900, 4, generator=g)
    y = x[:, :1] * x[:, 1:2] + 0.3 * torch.randn(900, 1, generator=g)
    wild = torch.rand(900, 1, generator=g) < 0.1
    return x, torch.where(wild, y + 10 * torch.randn(900, 1, generator=g), y)


def uneven(g: torch.Generator) -> Data:
    """Two classes of inputs whose scales span a factor of 300."""
    x = torch.randn(900, 6, generator=g)
    y = (x.sum(1) + torch.randn(900, generator=g) > 0).float()[:, None]
    return x * torch.logspace(-1.5, 1, 6), y


def digits(wrong: float, images: bool, g: torch.Generator) -> Data:
    """Handwritten digits, a share of them labelled at random."""
    from sklearn.datasets import load_digits

    source = load_digits()
    chosen = torch.randperm(len(source.target), generator=g)[:900]
    x, y = torch.tensor(source.images)[chosen].float() / 16, torch.tensor(source.target)[chosen]
    drawn = torch.randint(0, 10, y.shape, generator=g)
    y = torch.where(torch.rand(y.shape, generator=g) < wrong, drawn, y)
    return (x[:, None] if images else x.flatten(1)), y


def prices(g: torch.Generator) -> Data:
    """Targets in the hundreds."""
    x = torch.rand(900, 5, generator=g)
    y = 300 + 200 * (x[:, :1] - x[:, 1:2]) * x[:, 2:3] + 30 * torch.randn(900, 1, generator=g)
    return x, y / 100


def tags(g: torch.Generator) -> Data:
    """Five labels, each of which may be there or not."""
    x = torch.randn(900, 10, generator=g)
    return x, (x @ torch.randn(10, 5, generator=g) + 2 * torch.randn(900, 5, generator=g) > 0) * 1.0


def blobs(g: torch.Generator) -> Data:
    """Four overlapping clouds."""
    y = torch.randint(0, 4, (900,), generator=g)
    return torch.randn(4, 6, generator=g)[y] + torch.randn(900, 6, generator=g), y


def moons(g: torch.Generator) -> Data:
    """Two half circles that overlap."""
    y = torch.arange(900) % 2
    t = math.pi * torch.rand(900, generator=g)
    x = torch.stack([t.cos() + y, t.sin() * (1 - 2 * y) + 0.3 * y], 1)
    return x + 0.35 * torch.randn(900, 2, generator=g), y


def words(g: torch.Generator) -> Data:
    """Texts of eight words; the class is what most of them lean to."""
    x = torch.randint(0, 60, (900, 8), generator=g)
    leaning = torch.randn(60, 3, generator=g)[x].sum(1)
    return x, (leaning + 2 * torch.randn(900, 3, generator=g)).argmax(1)


def convnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )


def of_words() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(60, 16), nn.Linear(16, 3))


momentum = partial(SGD, mom=0.9)
entropy, mse = nn.CrossEntropyLoss(), nn.MSELoss()
bce, poisson = nn.BCEWithLogitsLoss(), nn.PoissonNLLLoss(full=True)
clean, noisy = partial(digits, 0.1, False), partial(digits, 0.3, False)
pictures = partial(digits, 0.1, True)
line = partial(nn.Linear, 8, 1)
with_norms = partial(mlp, 64, 32, 10, norm=True)
smooth = partial(mlp, 2, 16, 2, act=nn.Tanh)

PROBLEMS = [
    Problem("plane", plane, line, mse, SGD, 20, 4, (0.01, 0.032)),
    Problem("counts", counts, partial(mlp, 6, 16, 1), poisson, momentum, 30, 5, (0.0032, 0.32)),
    Problem("outliers", outliers, partial(mlp, 4, 32, 1), nn.L1Loss(), Adam, 30, 8, (0.01, 0.32)),
    Problem("uneven", uneven, partial(nn.Linear, 6, 1), bce, momentum, 30, 6, (0.01, 0.1)),
    Problem("convnet", pictures, convnet, entropy, Adam, 50, 10, (0.032, 0.1)),
    Problem("norms", clean, with_norms, entropy, momentum, 50, 8, (0.032, 0.1)),
    Problem("noise", noisy, partial(mlp, 64, 32, 10), entropy, Adam, 50, 8, (0.01, 0.1)),
    Problem("prices", prices, partial(mlp, 5, 16, 1), mse, Adam, 40, 10, (0.32, 1.0)),
    Problem("tags", tags, partial(mlp, 10, 16, 5), bce, RMSProp, 30, 6, (0.01, 0.1)),
    Problem("small batches", blobs, partial(nn.Linear, 6, 4), entropy, SGD, 4, 1, (0.1, 1.0)),
    Problem("large batches", moons, smooth, entropy, momentum, 150, 30, (0.32, 1.0)),
    Problem("words", words, of_words, entropy, AdamW, 30, 6, (0.032, 0.1)),
]
