"""Bring images to one size, so that they can be stacked to a batch."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from treadle.data.draws import Draws
from treadle.data.targets import resized, windowed
from treadle.data.transforms import ItemTransform, PadMode, Size, as_size
from treadle.errors import UsageError
from treadle.registry import register

__all__ = ["PadMode", "Resize", "ResizeMethod"]


class ResizeMethod(StrEnum):
    """How `Resize` treats an image of another aspect ratio."""

    Crop = "crop"
    Squish = "squish"
    Pad = "pad"


@register
class Resize(ItemTransform):
    """Resize to `size` (side of a square, or (height, width)), bilinear, antialiased.

    `method`: "crop" fills the size and cuts what sticks out on the longer side (at random in
    training, evenly in validation); "squish" changes the aspect ratio; "pad" fits the whole image
    in and fills the rest by `pad_mode` (at a random place in training, centred in validation).

    It has two parts: the image is resized whole, which is the same each time and can be kept
    (`fitted`), and a window of `size` is laid on it, which is drawn (`windows`). Masks, points and
    boxes of the sample go along.

    >>> Resize(4)(Image.new("RGB", (8, 6))).size
    (4, 4)
    """

    def __init__(
        self,
        size: Size,
        method: ResizeMethod | str = ResizeMethod.Crop,
        pad_mode: PadMode | str = PadMode.Reflection,
    ) -> None:
        self.size = as_size(size)
        self.method = _member(ResizeMethod, "method", method)
        self.pad_mode = _member(PadMode, "pad_mode", pad_mode)

    def fitted(self, frame: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that an image of (height, width) `frame` is resized to whole."""
        if self.method is ResizeMethod.Squish:
            return self.size
        crop = self.method is ResizeMethod.Crop
        bound = max if crop else min
        scale = bound(self.size[0] / frame[0], self.size[1] / frame[1])
        # whole pixels, halves upwards: the same on every machine
        height, width = (int(side * scale + 0.5) for side in frame)
        if crop:
            return max(height, self.size[0]), max(width, self.size[1])
        return max(min(height, self.size[0]), 1), max(min(width, self.size[1]), 1)

    def windows(self, fitted: NDArray[np.int64], draws: Draws | None) -> NDArray[np.int64]:
        """Top and left of the window, (B, 2), on images of (height, width) `fitted`, (B, 2).

        Both are negative where the image is smaller than the window.
        """
        room = fitted - np.array(self.size)
        places: NDArray[np.int64] = np.abs(room) // 2
        if draws is not None:
            places = (draws.uniform() * (np.abs(room) + 1)).astype(np.int64)
        places *= np.sign(room)
        return places

    def __call__(self, image: Image.Image, draws: Draws | None = None) -> Image.Image:
        pixels, frame = np.asarray(image), (image.height, image.width)
        if frame == self.size:
            return image
        fitted = self.fitted(frame)
        pixels = resized("image", pixels, frame, fitted)
        top, left = self.windows(np.array([fitted]), draws)[0].tolist()
        return Image.fromarray(windowed("image", pixels, (top, left, *self.size), self.pad_mode))


Choice = TypeVar("Choice", bound=StrEnum)


def _member(kind: type[Choice], argument: str, value: str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(repr(str(member)) for member in kind)
        raise UsageError(f"{argument}={value!r} is not one of {known}.") from None
