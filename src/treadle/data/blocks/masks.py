"""Masks: a class for each pixel."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from treadle.data.blocks.pixels import PixelBlock
from treadle.data.decode import Frame, Goal, Pixels, read_file
from treadle.errors import DataError, UsageError
from treadle.losses import CrossEntropyLossFlat
from treadle.registry import register

__all__ = ["MaskBlock"]

_FORMATS = ("PNG", "GIF", "BMP", "TIFF", "WEBP")


@register
class MaskBlock(PixelBlock):
    """A mask: the class of each pixel, as a number from 0; in a batch int64 of shape (B, H, W).

    From a file's path, a PIL image, or an array (H, W) of whole numbers. The numbers are the
    indices of a palette image (whatever its colours) or the values of a grey one. `codes` are the
    names of the classes in their order; with them every value is checked. `ignore` is the value of
    pixels that count for nothing (255 in the masks of Pascal VOC): the loss leaves them out.

    Raises `DataError` for values that are no index of `codes`, for colour images, for JPEG files
    (whose values are not exact), and for files that do not decode.

    >>> block = MaskBlock(["sky", "tree"])
    >>> block.encode(np.array([[0, 1, 1]])).size
    (3, 1)
    """

    kind: ClassVar[str | None] = "mask"

    def __init__(self, codes: Sequence[Hashable] | None = None, ignore: int | None = None) -> None:
        self.vocab = None if codes is None else list(codes)
        if self.vocab is not None and not 1 < len(set(self.vocab)) == len(self.vocab) <= 256:
            raise UsageError(
                f"MaskBlock(codes={codes!r}): expected 2 to 256 names of classes, each once."
            )
        self.ignore = ignore

    @property
    def loss_func(self) -> Callable[..., Any]:
        """`CrossEntropyLossFlat(axis=1)`: models give scores of shape (B, classes, H, W)."""
        if self.ignore is None:
            return CrossEntropyLossFlat(axis=1)
        return CrossEntropyLossFlat(axis=1, ignore_index=self.ignore)

    def pixels(self, value: Any, goal: Goal | None = None) -> tuple[Pixels, Frame]:
        if isinstance(value, np.ndarray):
            array = _whole(value)
        elif isinstance(value, Image.Image):
            array = _indices(ImageOps.exif_transpose(value), "The mask")
        else:
            array = _read(value)
        if self.vocab is not None:
            self._check(array, "" if isinstance(value, np.ndarray | Image.Image) else f" {value}")
        return array, (array.shape[0], array.shape[1])

    def _check(self, array: Pixels, name: str) -> None:
        assert self.vocab is not None
        # the largest value is quick to find, and mostly says that all is well
        if array.size == 0 or int(array.max()) < len(self.vocab):
            return
        found = np.flatnonzero(np.bincount(array.ravel()))
        odd = [int(v) for v in found if v >= len(self.vocab) and v != self.ignore]
        if odd:
            raise DataError(
                f"The mask{name} holds the values {', '.join(map(str, odd[:10]))}"
                f"{' and more' if len(odd) > 10 else ''}; expected 0 to {len(self.vocab) - 1}, the "
                f"indices of {len(self.vocab)} codes. Give more codes, ignore= for a value that "
                "counts for nothing, or let get_y return an array with the right numbers."
            )


def _whole(array: NDArray[Any]) -> Pixels:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise DataError(
            f"An array of shape {array.shape} and dtype {array.dtype} is no mask; expected whole "
            "numbers of shape (height, width), a class for each pixel."
        )
    return _as_bytes(array, "The mask")


def _as_bytes(array: NDArray[Any], name: str) -> Pixels:
    if array.dtype != np.uint8 and array.size and not 0 <= array.min() <= array.max() <= 255:
        raise DataError(
            f"{name} holds values in {array.min()}..{array.max()}; expected classes in 0..255."
        )
    return array.astype(np.uint8, copy=False)


def _read(path: str | os.PathLike[str]) -> Pixels:
    name = f"The mask {path}"
    data = read_file(path, "mask")
    if data.startswith(b"\xff\xd8"):
        raise DataError(
            f"{name} is a JPEG file, which changes values a little: classes are lost in it. Save "
            "masks as PNG."
        )
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return _indices(ImageOps.exif_transpose(image), name)
    except (DataError, UsageError):
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} was refused: {error}") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        reason = str(error) if str(error) and "BytesIO" not in str(error) else "not an image file"
        raise DataError(f"{name} ({len(data)} bytes) does not decode: {reason}.") from error


def _indices(image: Image.Image, name: str) -> Pixels:
    array = np.asarray(image)
    if image.mode in ("P", "L"):
        return array
    if array.ndim == 2 and array.dtype.kind in "iub":
        return _as_bytes(array, name)
    if image.mode == "LA":
        return np.ascontiguousarray(array[..., 0])
    if image.mode in ("RGB", "RGBA") and (array[..., :1] == array[..., 1:3]).all():
        return np.ascontiguousarray(array[..., 0])  # grey, saved as colour
    raise DataError(
        f"{name} is a picture of mode {image.mode!r} in colour; expected a palette or grey image "
        "whose values are classes. Let get_y return an array of class indices instead."
    )
