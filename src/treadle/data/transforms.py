"""What a transform is: the two faces that pipelines know.

An item transform changes one PIL image, in a worker thread. A batch transform changes a float
tensor of shape (B, C, H, W), on the device. Both are handed their random numbers (`draws`), or
None in validation, when nothing is random. Any plain function of one argument is a transform too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import Any

import torch
from PIL import Image

from treadle.data.draws import Draws
from treadle.errors import UsageError

__all__ = ["BatchTransform", "ItemTransform", "PadMode", "Size", "as_size"]

Size = int | tuple[int, int]
"""Side of a square, or (height, width), in pixels."""


class PadMode(StrEnum):
    """What `Resize` with `ResizeMethod.Pad` puts around the image."""

    Zeros = "zeros"
    Border = "border"
    Reflection = "reflection"


class _Described:
    """Shows itself as the call that makes it, from the attributes that hold the arguments."""

    def __repr__(self) -> str:
        own = {n: v for n, v in vars(self).items() if not n.startswith("_")}
        plain = {n: v.value if isinstance(v, StrEnum) else v for n, v in own.items()}
        arguments = (f"{name}={value!r}" for name, value in plain.items())
        return f"{type(self).__name__}({', '.join(arguments)})"


class ItemTransform(_Described, ABC):
    """A transform of one image."""

    @abstractmethod
    def __call__(self, image: Image.Image, draws: Draws | None = None) -> Any:
        """`image` transformed; `draws` holds one sample, or is None in validation."""


class BatchTransform(_Described, ABC):
    """A transform of a batch of images, float of shape (B, C, H, W)."""

    @abstractmethod
    def __call__(self, x: torch.Tensor, draws: Draws | None = None) -> torch.Tensor:
        """`x` transformed, as a new tensor; `draws` holds B samples, or is None in validation."""

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """`x` as it is to be shown: the inverse of what would make it unrecognisable."""
        return x


def as_size(size: Size) -> tuple[int, int]:
    """(height, width) of a size that may be one number.

    >>> as_size(160), as_size((120, 160))
    ((160, 160), (120, 160))
    """
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise UsageError(f"size={size!r} is not a positive int or a (height, width) pair of them.")
    return pair
