"""The parameter sets of optimizer.py: shapes only, so that a side needs nothing but torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import prod

Shapes = list[list[int]]


@dataclass(frozen=True)
class ParameterSet:
    """What is known of a set, and how often it is measured."""

    title: str
    make: Callable[[], Shapes]
    rounds: int
    repeat: int = 1
    """Steps that are timed as one: many where a step is short."""
    large: bool = False
    """Whether memory decides, and not the calls."""

    @cached_property
    def shapes(self) -> Shapes:
        """The shape of each tensor."""
        return self.make()

    @property
    def numbers(self) -> int:
        """How many numbers all tensors have."""
        return sum(map(prod, self.shapes))


def _torchvision(name: str) -> Shapes:
    import torch
    from torchvision.models import get_model

    with torch.device("meta"):
        return [list(p.shape) for p in get_model(name).parameters()]


def _gpt2() -> Shapes:
    """GPT-2 small: 12 blocks of width 768, a vocabulary of 50,257, output tied to the input."""
    width = 768
    norm = [[width], [width]]
    attention = [[width, 3 * width], [3 * width], [width, width], [width]]
    mlp = [[width, 4 * width], [4 * width], [4 * width, width], [width]]
    block = [*norm, *attention, *norm, *mlp]
    return [[50257, width], [1024, width], *(12 * block), *norm]


SETS = {
    "tiny": ParameterSet("4 tiny", lambda: [[32, 16], [32], [4, 32], [4]], 150, repeat=100),
    "small": ParameterSet("500 of 1,056", lambda: 500 * [[1056]], 100, repeat=5),
    "resnet34": ParameterSet("resnet34", lambda: _torchvision("resnet34"), 60, large=True),
    "gpt2": ParameterSet("GPT-2", _gpt2, 15, large=True),
    "vit": ParameterSet("ViT-B/16", lambda: _torchvision("vit_b_16"), 15, large=True),
}
