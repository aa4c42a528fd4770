"""Elements that are places in the image: points and boxes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from treadle.data.blocks.base import Block, Labelled
from treadle.data.blocks.categories import NA, Categorical
from treadle.errors import DataError
from treadle.losses import MSELossFlat
from treadle.registry import register

__all__ = ["BBoxBlock", "BBoxLblBlock", "PointBlock"]

Numbers = NDArray[np.float32]


@register
class PointBlock(Block):
    """Points in the image: (x, y) in pixels of the full-size picture, x to the right, y downwards;
    a list of pairs, an array or a tensor, or one pair. float32 of shape (N, 2).

    `n_points` says how many; None takes it from the first training item. They move with the image.
    In a batch they are (B, N, 2), and -1 and 1 are the edges of the image.

    >>> PointBlock().encode([(3, 4), (10, 0.5)]).shape
    (2, 2)
    """

    kind: ClassVar[str | None] = "points"

    def __init__(self, n_points: int | None = None) -> None:
        self._count = n_points

    def as_arguments(self) -> dict[str, Any]:
        """The arguments that make the block as it is now."""
        return {"n_points": self._count}

    @property
    def n_out(self) -> int | None:
        """Two numbers a point; None before the number of points is known."""
        return None if self._count is None else 2 * self._count

    @property
    def loss_func(self) -> Callable[..., Any]:
        """`MSELossFlat()`."""
        return MSELossFlat()

    def setup(self, train: Labelled, valid: Labelled) -> PointBlock:
        """The block that knows how many points the first training item has."""
        block = PointBlock(self._count)
        value, item = next(iter(train))
        try:
            block._count = len(block.encode(value))
        except DataError as error:
            raise DataError(f"The training item {item}: {error}") from None
        return block

    def encode(self, value: Any) -> Numbers:
        points = _rows(value, 2, "points (x, y)")
        if self._count is not None and len(points) != self._count:
            raise DataError(
                f"There are {len(points)} points; expected {self._count}, as the first training "
                "item has. NaN may stand for a point that is not there, with a loss that knows it."
            )
        return points


@register
class BBoxBlock(Block):
    """Boxes in the image: (left, top, right, bottom) in pixels of the full-size picture; a list of
    them, an array or a tensor. float32 of shape (N, 4), where N is `most`, by default the largest
    number of boxes that an item has; rows of NaN stand in the places that are left.

    They move with the image. In a batch -1 and 1 are the edges of the image, and a box of which
    nothing is left is NaN as well. No loss is usual.

    Raises `DataError` for a box whose right lies left of its left, or bottom above its top.

    >>> BBoxBlock().encode([(0, 0, 20, 10)])
    array([[ 0.,  0., 20., 10.]], dtype=float32)
    """

    kind: ClassVar[str | None] = "boxes"

    def __init__(self, most: int | None = None) -> None:
        self._most = most

    def as_arguments(self) -> dict[str, Any]:
        """The arguments that make the block as it is now."""
        return {"most": self._most}

    def setup(self, train: Labelled, valid: Labelled) -> BBoxBlock:
        """The block that knows how many boxes an item has at most, all of them checked."""
        counts = [0]
        for part, labelled in (("training", train), ("validation", valid)):
            for value, item in labelled:
                try:
                    counts.append(len(self.encode(value)))
                except DataError as error:
                    raise DataError(f"The {part} item {item}: {error}") from None
        return self if self._most is not None else BBoxBlock(max(counts))

    def encode(self, value: Any) -> Numbers:
        boxes = _rows(value, 4, "boxes (left, top, right, bottom)")
        inverted = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
        if inverted.any():
            raise DataError(
                f"The box {boxes[inverted][0].tolist()} ends before it begins; expected (left, "
                "top, right, bottom), not a width and a height."
            )
        return _filled(boxes, self._most, np.nan, "boxes")


@register
class BBoxLblBlock(Categorical):
    """The classes of the boxes that `BBoxBlock` holds, in their order: int64 of shape (N,).

    `vocab` is the sorted labels of the training items unless it is given. Index 0 is always "#na#",
    the class of unknown labels and of the places that hold no box. No loss is usual.

    >>> block = BBoxLblBlock().setup([(["cat", "dog"], 0), (["cat"], 1)], [])
    >>> block.vocab, block.encode(["dog"]).tolist(), block.decode([2, 0])
    (['#na#', 'cat', 'dog'], [2, 0], ['dog'])
    """

    def __init__(self, vocab: Sequence[Hashable] | None = None, most: int | None = None) -> None:
        super().__init__(vocab, sort=True, add_na=True)
        self._most = most

    def as_arguments(self) -> dict[str, Any]:
        return {"vocab": self.vocab, "most": self._most}

    def setup(self, train: Labelled, valid: Labelled) -> BBoxLblBlock:
        """The block with its vocab, which knows how many labels an item has at most."""
        lists = [list(labels) for labels, _ in train]
        known = self._knowing(label for labels in lists for label in labels)
        block = copy(known)
        if block._most is None:
            block._most = max(map(len, [*lists, *(labels for labels, _ in valid)]))
        return block

    def encode(self, value: Any) -> NDArray[np.int64]:
        indices = np.array([self.index(label) for label in value], np.int64)
        return _filled(indices, self._most, 0, "labels")

    def decode(self, element: Any) -> list[Any]:
        """The names of the labels, places without a box left out."""
        assert self.vocab is not None, "decoded before setup"
        names = [self.vocab[int(index)] for index in element]
        return [name for name in names if name != NA]


def _filled(rows: NDArray[Any], most: int | None, filler: float, what: str) -> NDArray[Any]:
    """`rows`, as many as `most`: samples of one shape can be stacked to a batch."""
    if most is None:
        return rows
    if len(rows) > most:
        raise DataError(
            f"There are {len(rows)} {what}; expected at most {most}, as many as an item had when "
            "the data were set up."
        )
    space = np.full((most - len(rows), *rows.shape[1:]), filler, rows.dtype)
    return np.concatenate([rows, space])


def _rows(value: Any, width: int, what: str) -> Numbers:
    try:
        rows = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise DataError(f"{value!r} are no {what}; expected a list of them.") from None
    if rows.size == 0:
        return np.zeros((0, width), np.float32)
    rows = rows[None] if rows.shape == (width,) else rows
    if rows.ndim != 2 or rows.shape[1] != width or np.isinf(rows).any():
        raise DataError(f"An array of shape {rows.shape} holds no {what}; expected (N, {width}).")
    return rows
