"""Bring images to one size, so that they can be stacked to a batch."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

import numpy as np
from PIL import Image

from treadle.data.draws import Draws
from treadle.data.transforms import ItemTransform, Size, as_size
from treadle.errors import UsageError

__all__ = ["PadMode", "Resize", "ResizeMethod"]


class ResizeMethod(StrEnum):
    """How `Resize` treats an image of another aspect ratio."""

    Crop = "crop"
    Squish = "squish"
    Pad = "pad"


class PadMode(StrEnum):
    """What `Resize` with `ResizeMethod.Pad` puts around the image."""

    Zeros = "zeros"
    Border = "border"
    Reflection = "reflection"


_NUMPY_PADS = {PadMode.Zeros: "constant", PadMode.Border: "edge", PadMode.Reflection: "reflect"}


class Resize(ItemTransform):
    """Resize to `size` (side of a square, or (height, width)), bilinear, antialiased.

    `method`: "crop" fills the size and cuts what sticks out on the longer side (at random in
    training, evenly in validation); "squish" changes the aspect ratio; "pad" fits the whole image
    in and fills the rest by `pad_mode` (at a random place in training, centred in validation).

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

    def __call__(self, image: Image.Image, draws: Draws | None = None) -> Image.Image:
        height, width = self.size
        if image.size == (width, height):
            return image
        if self.method is ResizeMethod.Squish:
            return image.resize((width, height), Image.Resampling.BILINEAR)
        along = 0.5 if draws is None else float(draws.uniform()[0, 0])
        if self.method is ResizeMethod.Crop:
            return self._crop(image, along)
        return self._pad(image, along)

    def _crop(self, image: Image.Image, along: float) -> Image.Image:
        height, width = self.size
        scale = min(image.width / width, image.height / height)
        # whole pixels, so that validation is the same on every machine
        across, down = int(scale * width), int(scale * height)
        left, top = int(along * (image.width - across)), int(along * (image.height - down))
        box = (left, top, left + max(across, 1), top + max(down, 1))
        return image.resize((width, height), Image.Resampling.BILINEAR, box=box)

    def _pad(self, image: Image.Image, along: float) -> Image.Image:
        height, width = self.size
        scale = max(image.width / width, image.height / height)
        inner = (max(round(image.width / scale), 1), max(round(image.height / scale), 1))
        pixels = np.asarray(image.resize(inner, Image.Resampling.BILINEAR))
        left, top = int(along * (width - inner[0])), int(along * (height - inner[1]))
        around = [(top, height - inner[1] - top), (left, width - inner[0] - left), (0, 0)]
        mode = _NUMPY_PADS[self.pad_mode]
        padded = np.pad(pixels, around[: pixels.ndim], mode=mode)  # type: ignore[call-overload]
        return Image.fromarray(padded)


Choice = TypeVar("Choice", bound=StrEnum)


def _member(kind: type[Choice], argument: str, value: str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(repr(str(member)) for member in kind)
        raise UsageError(f"{argument}={value!r} is not one of {known}.") from None
