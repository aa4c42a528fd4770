"""What a block is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np

__all__ = ["Block", "Labelled", "is_missing"]

Labelled = Iterable[tuple[Any, Any]]
"""Pairs (value that the getter returned, item that it was returned for)."""


class Block(ABC):
    """What one element of a sample is."""

    kind: ClassVar[str | None] = None
    """What transforms have to know of the element: "image", "mask", "points", "boxes", or None
    where they leave it alone."""

    vocab: list[Any] | None = None
    """The classes, where the element is one of a known number of them."""

    @property
    def n_out(self) -> int | None:
        """How many numbers a model gives for the element as a target: classes, or values."""
        return None if self.vocab is None else len(self.vocab)

    @property
    def loss_func(self) -> Callable[..., Any] | None:
        """The loss that suits the element as a target, or None where none is usual."""
        return None

    @property
    def loader_types(self) -> tuple[type, type] | None:
        """The kinds of `DataLoader` and `DataLoaders` that batches of the element need, where they
        are others than these."""
        return None

    def setup(self, train: Labelled, valid: Labelled) -> Block:
        """The block that knows the data. The block itself is left as it is, to be used again."""
        return self

    @abstractmethod
    def encode(self, value: Any) -> Any:
        """What the getter returned as a PIL image, tensor, array or number."""

    def decode(self, element: Any) -> Any:
        """An element of a batch as a person knows it; undoes `encode` where that can be."""
        return element

    def __repr__(self) -> str:
        shown = (f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({', '.join(shown)})"


def is_missing(value: Any) -> bool:
    """Whether a table's cell is empty: None, "", NaN, or pandas' NA and NaT.

    >>> [is_missing(value) for value in (None, "", float("nan"), 0, "no")]
    [True, True, True, False, False]
    """
    if isinstance(value, str) or value is None:
        return not value
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    # pandas is not imported for this: its two values are known by their types' names
    return type(value).__name__ in ("NAType", "NaTType")
