"""Elements that are numbers."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.data.blocks.base import Block, Labelled, is_missing
from treadle.errors import DataError
from treadle.losses import MSELossFlat
from treadle.registry import register

__all__ = ["RegressionBlock"]


@register
class RegressionBlock(Block):
    """One number or several: float32, in a batch of shape (B,) for one, (B, n) for a list of n.

    `n_out` says how many; None takes it from the first training item. Text such as "2.5", as a CSV
    file has it, is read as a number.

    Raises `DataError` for what is no number, is not finite, or has another length.

    >>> block = RegressionBlock().setup([([1, 2.5], "a"), ([0, 3], "b")], [])
    >>> block.n_out, block.encode(("1", "2"))
    (2, array([1., 2.], dtype=float32))
    """

    def __init__(self, n_out: int | None = None) -> None:
        self._n_out = n_out

    def as_arguments(self) -> dict[str, Any]:
        """The arguments that make the block as it is now."""
        return {"n_out": self._n_out}

    @property
    def n_out(self) -> int | None:
        """How many numbers there are; None before they are known."""
        return self._n_out

    @property
    def loss_func(self) -> Callable[..., Any]:
        """`MSELossFlat()`."""
        return MSELossFlat()

    def setup(self, train: Labelled, valid: Labelled) -> RegressionBlock:
        """The block with its `n_out`, the numbers of both parts checked; an error names an item."""
        block = copy(self)
        for part, labelled in (("training", train), ("validation", valid)):
            for value, item in labelled:
                try:
                    numbers = block.encode(value)
                except DataError as error:
                    raise DataError(f"The {part} item {item}: {error}") from None
                block._n_out = block._n_out or numbers.size
        return block

    def encode(self, value: Any) -> NDArray[np.float32]:
        try:
            numbers = np.asarray(value, np.float32)
        except (TypeError, ValueError):
            numbers = np.asarray(np.nan, np.float32)
        if not np.isfinite(numbers).all():
            what = "is missing" if is_missing(value) else "is not a finite number"
            raise DataError(f"The value {value!r} {what}; expected a number or a list of numbers.")
        if numbers.ndim > 1 or numbers.size != (self._n_out or numbers.size):
            raise DataError(
                f"The value {value!r} has the shape {numbers.shape}; expected "
                f"{'one number' if self._n_out == 1 else f'{self._n_out or 1} numbers'}."
            )
        return numbers

    def decode(self, element: Any) -> Any:
        """A float, or a list of them."""
        return element.tolist()
