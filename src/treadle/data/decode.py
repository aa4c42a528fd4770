"""Image files to 8-bit PIL images, or an error that names the file."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from treadle.errors import DataError, UsageError

__all__ = ["MODES", "open_image", "to_mode"]

MODES = {"RGB": "RGB", "L": "GRAY"}
"""The modes that images are decoded to, and libjpeg-turbo's names of them."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_ORIENTATION = 0x0112  # the tag of EXIF that says how the camera was held


def open_image(path: str | os.PathLike[str], mode: str = "RGB") -> Image.Image:
    """The image in the file `path`, upright (EXIF orientation applied), of mode "RGB" or "L".

    JPEG, PNG, WebP, BMP, GIF (first frame) and TIFF. Transparency is dropped; 16-bit grey is scaled
    to 8 bits. Common JPEG files are decoded by libjpeg-turbo, the rest by Pillow.

    Raises `DataError` that names the file: missing, empty, truncated, not an image, larger than
    Pillow's limit on decompression bombs, or of a pixel type that has no 8-bit meaning.
    """
    if mode not in MODES:
        raise UsageError(f"mode={mode!r} is not one of {', '.join(map(repr, MODES))}.")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"The image {path} cannot be read ({error.strerror}).") from error
    if not data:
        raise DataError(f"The image {path} is empty (0 bytes). Remove it or fetch it again.")
    image = _by_turbo(data, mode)
    return image if image is not None else _by_pillow(data, mode, path)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """`image` as 8-bit RGB or L; raises ValueError for pixel types without an 8-bit meaning."""
    if image.mode.startswith("I;16"):  # Pillow would clip these at 255 instead of scaling them
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no 8-bit meaning; convert the file")
    elif image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")  # resolves the palette without Pillow's warning
    return image if image.mode == mode else image.convert(mode)


def _by_turbo(data: bytes, mode: str) -> Image.Image | None:
    """libjpeg-turbo's decoding where it is certain to equal Pillow's, else None.

    None also for files that libjpeg-turbo finds faults in: Pillow, more lenient, then decides.
    """
    import simplejpeg

    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB", "Gray") or _is_bomb(height * width):
            return None
        # a search is cheaper than parsing, and a chance hit in the pixels only costs time
        if b"Exif\x00\x00" in data and _is_turned(data):
            return None
        pixels = simplejpeg.decode_jpeg(data, MODES[mode])
    except ValueError:
        return None
    return Image.fromarray(pixels[..., 0] if mode == "L" else pixels)


def _is_bomb(pixels: int) -> bool:
    return Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS


def _is_turned(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return bool(image.getexif().get(_ORIENTATION, 1) != 1)
    except Exception:
        return True  # whatever is wrong with it, Pillow's path reports it


def _by_pillow(data: bytes, mode: str, path: str | os.PathLike[str]) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return to_mode(ImageOps.exif_transpose(image), mode)
    except Image.DecompressionBombError as error:
        raise DataError(
            f"The image {path} was refused: {error} If you trust the file, raise "
            "PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        reason = str(error) if str(error) and "BytesIO" not in str(error) else "not an image file"
        raise DataError(
            f"The image {path} ({len(data)} bytes) does not decode: {reason}. "
            "Remove it or fetch it again."
        ) from error
