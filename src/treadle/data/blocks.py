"""Blocks: what an element of a sample is, and how it comes from what its getter returned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from treadle.data.decode import MODES, open_image, to_mode
from treadle.errors import DataError, UsageError, nearest
from treadle.losses import CrossEntropyLossFlat

__all__ = ["Block", "CategoryBlock", "ImageBlock"]

Labelled = Iterable[tuple[Any, Any]]
"""Pairs (value that the getter returned, item that it was returned for)."""


class Block(ABC):
    """What one element of a sample is."""

    vocab: list[Any] | None = None
    """The classes, where the element is one of a known number of them."""

    @property
    def loss_func(self) -> Callable[..., Any] | None:
        """The loss that suits the element as a target, or None where none is usual."""
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


class ImageBlock(Block):
    """An image: a file's path, or a PIL image or uint8 array (H, W) or (H, W, 3) as it is.

    `mode` is "RGB" (3 channels) or "L" (grey, 1 channel).
    """

    def __init__(self, mode: str = "RGB") -> None:
        if mode not in MODES:
            raise UsageError(f"ImageBlock(mode={mode!r}): expected one of {', '.join(MODES)}.")
        self.mode = mode

    def encode(self, value: Any) -> Image.Image:
        if isinstance(value, np.ndarray):
            value = Image.fromarray(value)
        if isinstance(value, Image.Image):
            return to_mode(value, self.mode)
        return open_image(value, self.mode)


class CategoryBlock(Block):
    """One of several classes: a label, encoded as its index in `vocab`.

    `vocab` is the sorted labels of the training items unless it is given.
    """

    def __init__(self, vocab: Sequence[Hashable] | None = None) -> None:
        self.vocab = None if vocab is None else list(vocab)
        self._index = {label: index for index, label in enumerate(self.vocab or ())}
        if len(self._index) != len(self.vocab or ()):
            raise UsageError(f"CategoryBlock(vocab={self.vocab!r}) names a class twice.")

    @property
    def loss_func(self) -> Callable[..., Any]:
        """`CrossEntropyLossFlat()`."""
        return CrossEntropyLossFlat()

    def setup(self, train: Labelled, valid: Labelled) -> CategoryBlock:
        """The block with its vocab, every label of both parts checked against it.

        Raises `DataError` for fewer than two classes, and for a label that the vocab lacks: it
        names the label and an item.
        """
        labels, examples = zip(*train, strict=True)
        block = CategoryBlock(_classes(labels) if self.vocab is None else self.vocab)
        if len(block._index) < 2:
            raise DataError(
                f"There is one class, {labels[0]!r} (for example {examples[0]}); expected at least "
                "two. Check get_y and the folder that was given."
            )
        block._check("training", zip(labels, examples, strict=True))
        block._check("validation", valid)
        return block

    def _check(self, part: str, labelled: Labelled) -> None:
        for label, item in labelled:
            if label not in self._index:
                raise DataError(
                    f"The {part} item {item} has the label {label!r}, which is not among the "
                    f"{len(self._index)} classes; {nearest(str(label), map(str, self._index))} "
                    "Classes come from the training items unless CategoryBlock(vocab=...) gives "
                    "them."
                )

    def encode(self, value: Any) -> int:
        if value not in self._index:
            raise DataError(
                f"The label {value!r} is not among the {len(self._index)} classes; "
                f"{nearest(str(value), map(str, self._index))}"
            )
        return self._index[value]

    def decode(self, element: Any) -> Any:
        assert self.vocab is not None, "decoded before setup"
        return self.vocab[int(element)]


def _classes(labels: Iterable[Any]) -> list[Any]:
    try:
        return sorted(set(labels))
    except TypeError as error:
        kinds = ", ".join(sorted({type(label).__name__ for label in labels}))
        raise DataError(
            f"Labels of type {kinds} cannot be sorted to a vocab ({error}). Let get_y return one "
            "type, str or int, or give CategoryBlock(vocab=[...])."
        ) from error
