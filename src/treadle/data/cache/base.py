"""What every cache of pictures is to the pipeline: `get` before decoding, `put` after it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from treadle.data.decode import Frame, Pixels
from treadle.errors import UsageError

__all__ = ["Frame", "PixelCache", "Pixels", "checked", "in_bytes"]


class PixelCache(ABC):
    """Pictures 0 to `n - 1` of one element of a data set, each decoded and written once.

    The pipeline asks `get`; where that is None it decodes, and hands the result to `put`. All
    methods may be called from several threads at once, for the same picture too.
    """

    def __init__(self, n: int) -> None:
        self.n = n

    @abstractmethod
    def get(self, index: int) -> tuple[Pixels, Frame] | None:
        """The picture and its frame, or None where there is none (yet). Never change the pixels."""

    def many(self, indices: Sequence[int]) -> Sequence[tuple[Pixels, Frame] | None]:
        """`get` of each of `indices`."""
        return [self.get(index) for index in indices]

    @abstractmethod
    def put(self, index: int, pixels: Pixels, frame: Frame) -> Pixels:
        """Keep the picture, and return the array to go on with.

        A picture that is there already stands. Raises `UsageError` for an array that is not uint8
        of shape (H, W) or (H, W, 3).
        """

    @abstractmethod
    def leave_out(self, index: int) -> None:
        """Count the picture as done though there is none: its file is bad and was skipped.

        `get` goes on to return None for it.
        """

    @property
    @abstractmethod
    def filled(self) -> int:
        """How many pictures are done, those left out among them."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The bytes of the pixels that are kept."""

    @abstractmethod
    def close(self) -> None:
        """Let go of memory and files. From now on nothing is found and nothing is kept."""

    @property
    def complete(self) -> bool:
        """Whether every picture is done: nothing remains to be decoded."""
        return self.filled == self.n

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"{kind}({self.filled} of {self.n} pictures, {in_bytes(self.nbytes)})"


def checked(pixels: Any) -> Pixels:
    """`pixels` if they are a picture, made C-contiguous where they are not."""
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.size:
        shape = pixels.shape
        if len(shape) == 2 or (len(shape) == 3 and shape[2] == 3):
            return pixels if pixels.flags.c_contiguous else np.ascontiguousarray(pixels)
    given = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels)
    raise UsageError(
        f"A cache of pictures was given {given}; expected a numpy array of uint8, (H, W) or "
        "(H, W, 3), that is not empty."
    )


def in_bytes(number: float) -> str:
    """A number of bytes as it is told in messages.

    >>> in_bytes(72), in_bytes(734_003_200)
    ('72 B', '734.0 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.1f} {unit}" if unit != "B" else f"{number:.0f} B"
        number /= 1000
    return f"{number:.1f} TB"
