"""Elements made of pixels: images and masks."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from treadle.data.blocks.base import Block
from treadle.data.decode import MODES, Frame, Goal, Pixels, read_pixels, to_mode
from treadle.errors import DataError, UsageError
from treadle.registry import register

__all__ = ["ImageBlock", "PixelBlock"]


class PixelBlock(Block):
    """An element that is a grid of pixels, which transforms move and resize."""

    @abstractmethod
    def pixels(self, value: Any, goal: Goal | None = None) -> tuple[Pixels, Frame]:
        """The pixels of `value`, uint8 (H, W, 3) or (H, W), and the frame that they come from.

        With a `goal` a file may be decoded smaller than it is, though on no side smaller than the
        goal; without one, and for what is no file, the pixels have the size of the frame.
        """

    def encode(self, value: Any) -> Image.Image:
        """The pixels as a PIL image of full size."""
        return Image.fromarray(self.pixels(value)[0])


@register
class ImageBlock(PixelBlock):
    """An image: a file's path, or a PIL image or uint8 array (H, W), (H, W, 1) or (H, W, 3).

    `mode` is "RGB" (3 channels) or "L" (grey, 1 channel). Images stand upright: the EXIF
    orientation of files and PIL images is applied.

    Raises `DataError` for a file that does not decode (it names the file) and for an array of
    another type or shape.

    >>> ImageBlock("L").encode(np.zeros((2, 5, 3), np.uint8)).size
    (5, 2)
    """

    kind: ClassVar[str | None] = "image"

    def __init__(self, mode: str = "RGB") -> None:
        if mode not in MODES:
            raise UsageError(f"ImageBlock(mode={mode!r}): expected one of {', '.join(MODES)}.")
        self.mode = mode

    def pixels(self, value: Any, goal: Goal | None = None) -> tuple[Pixels, Frame]:
        if isinstance(value, np.ndarray):
            value = _checked(value)
            if value.ndim == (3 if self.mode == "RGB" else 2):
                return value, (value.shape[0], value.shape[1])
            value = Image.fromarray(value)
        if not isinstance(value, Image.Image):
            return read_pixels(value, self.mode, goal)
        image = to_mode(ImageOps.exif_transpose(value), self.mode)
        return np.array(image), (image.height, image.width)


def _checked(array: NDArray[Any]) -> Pixels:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    right = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not right or array.dtype != np.uint8 or array.size == 0:
        raise DataError(
            f"An array of shape {array.shape} and dtype {array.dtype} is no image; expected uint8 "
            "of shape (height, width) or (height, width, 3)."
        )
    return array
