"""Image files to upright 8-bit pixels, or an error that names the file."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from treadle.errors import DataError, UsageError

__all__ = ["MODES", "Frame", "Goal", "Pixels", "open_image", "read_file", "read_pixels", "to_mode"]

MODES = {"RGB": "RGB", "L": "GRAY"}
"""The modes that images are decoded to, and libjpeg-turbo's names of them."""

Pixels: TypeAlias = NDArray[np.uint8]
"""A picture: uint8 of shape (H, W, 3) for RGB, (H, W) for grey and masks."""

Frame: TypeAlias = tuple[int, int]
"""(height, width), in pixels: of the upright picture at its full size, unless it is said."""

Goal = Callable[[Frame], tuple[int, int]]
"""From the frame to the (height, width) that the picture will be resized to."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_MOST_BYTES = 1 << 30  # what a picture within Pillow's limit of pixels can hardly exceed
_MOST_SCANS = 500  # of a progressive JPEG; usual are 10, and each costs a pass over the picture
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

# Decoding 6 or 7 eighths takes 10 to 65 % longer than the whole; 5 eighths take about as long, for
# 61 % fewer pixels to resize. So the factor lies between 8/6 and 8/5.
_LEAST_FACTOR = 1.5

# Of libjpeg's warnings, those that mean wrong or missing pixels. The others are about the file's
# structure ("extraneous bytes before marker", "unknown JFIF revision"): Pillow reads over them.
_DAMAGE = re.compile("remature end|bad (Huffman|arithmetic) code|instead of RST|progression")

_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 258, 262  # tags of EXIF and TIFF


def read_pixels(
    source: str | os.PathLike[str] | bytes, mode: str = "RGB", goal: Goal | None = None
) -> tuple[Pixels, Frame]:
    """The pixels of an image, upright, and the (height, width) of the whole picture.

    `source` is a file's path, or the file's bytes. JPEG, PNG, WebP, BMP, GIF and TIFF; of several
    frames or pages the first. The pixels are a writable, C-contiguous uint8 array, (H, W, 3) for
    the mode "RGB", (H, W) for "L" (grey).

    `goal` is a function from the whole picture's (height, width) to the size that it will be
    resized to. With it a JPEG is decoded at the smallest of 1, 2, 3, 4, 5 and 8 eighths whose
    height and width, rounded up, both reach the goal (or the frame, where the goal is larger):
    cheaper than the whole, and never coarser than what was asked for.

    Where a file holds other than upright 8-bit colours:

    - The EXIF orientation is applied.
    - Transparency is dropped: a pixel has the colour that is stored for it, however transparent.
    - Of 16 bits the upper 8 are kept, so that 65535 becomes 255 and 255 becomes 0.
    - CMYK is multiplied out; colour profiles are not applied.
    - The grey of a colour JPEG is the luma that it stores, of other files ITU-R 601's.

    Raises `DataError` that names the file: missing, not a file, empty, truncated, damaged, not an
    image, of more than `PIL.Image.MAX_IMAGE_PIXELS`, or of pixels without an 8-bit meaning.

    >>> stream = io.BytesIO()
    >>> Image.new("RGB", (640, 400), "teal").save(stream, "JPEG")
    >>> pixels, frame = read_pixels(stream.getvalue(), goal=lambda frame: (160, 250))
    >>> pixels.shape, frame
    ((200, 320, 3), (400, 640))
    """
    if mode not in MODES:
        raise UsageError(f"mode={mode!r} is not one of {', '.join(map(repr, MODES))}.")
    data = source if isinstance(source, bytes) else read_file(source)
    try:
        jpeg = _jpeg_header(data)
    except _Unfit as error:
        raise _refusal(source, data, error) from error
    least = goal(jpeg.frame) if jpeg is not None and goal is not None else (0, 0)
    try:
        found = _by_turbo(data, jpeg, mode, least) if jpeg is not None else None
        return found or _by_pillow(data, mode)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise _refusal(source, data, error) from error


def open_image(path: str | os.PathLike[str], mode: str = "RGB") -> Image.Image:
    """The image in the file `path`, upright and at full size, as a PIL image of mode "RGB" or "L".

    The rules and the errors are those of `read_pixels`.
    """
    return Image.fromarray(read_pixels(path, mode)[0])


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """`image` as 8-bit RGB or L; raises ValueError for pixel types without an 8-bit meaning."""
    if image.mode.startswith("I;16"):  # Pillow would clip these at 255 instead of scaling them
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise _Unfit(
            f"pixels of mode {image.mode!r} have no 8-bit meaning; scale them to 0..255 first"
        )
    elif image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")  # resolves the palette without Pillow's warning
    return image if image.mode == mode else image.convert(mode)


def read_file(path: str | os.PathLike[str], what: str = "image") -> bytes:
    """All bytes of a regular file, up to 1 GiB.

    Raises `DataError`, which calls the file the `what`: missing, empty, larger, or another thing
    than a file. A named pipe is refused too, where opening it plainly would wait for a writer.
    """
    try:
        handle = os.open(path, _FLAGS)
    except TypeError as error:
        raise UsageError(f"The {what} {path!r} is not a path ({error}).") from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error
    try:
        status = os.fstat(handle)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or a device"
            raise DataError(f"The {what} {path} cannot be read (it is a {kind}, not a file).")
        if size > _MOST_BYTES:
            raise DataError(f"The {what} {path} has {size} bytes; expected at most {_MOST_BYTES}.")
        data = os.read(handle, size)
        while len(data) < size and (more := os.read(handle, size - len(data))):
            data += more  # a network's file system may deliver in parts
    except OSError as error:
        raise _unreadable(path, what, error) from error
    finally:
        os.close(handle)
    if not data:
        raise DataError(f"The {what} {path} is empty (0 bytes). Remove it or fetch it again.")
    return data


class _Unfit(ValueError):
    """A picture of a kind that has no place here, whether or not the file is sound."""


class _Jpeg(NamedTuple):
    frame: Frame
    components: int
    orientation: int


def _jpeg_header(data: bytes) -> _Jpeg | None:
    """What the segments before the first scan say (ITU-T T.81, annex B).

    None if they are not laid out as the standard has it, or are no JPEG's. Raises `_Unfit` for
    what is not to be decoded. Only markers are looked at: each costs a fraction of a microsecond.
    """
    if data[:3] != b"\xff\xd8\xff":
        return None
    size: tuple[int, int, int, int, int] | None = None
    exif = xmp = b""
    at, last = 2, len(data) - 10
    while at <= last and data[at] == 0xFF:
        marker = data[at + 1]
        end = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == 0xDA:  # a scan starts
            break
        if marker == 0xFF:  # a fill byte
            end = at + 1
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", at + 4):
            exif += data[at + 10 : end]  # a long one goes on in the next segment
        elif marker == 0xE1 and data.startswith(b"http://ns.adobe.com/xap/1.0/\0", at + 4):
            xmp = data[at + 33 : end]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if size is not None:
                return None
            size = marker, *struct.unpack_from(">BHHB", data, at + 4)
        at = end
    else:
        return None
    if size is None:
        return None
    process, bits, height, width, components = size
    if bits != 8:
        raise _Unfit(f"it has {bits} bits a sample; expected 8")
    if process in (0xC2, 0xCA) and (scans := data.count(b"\xff\xda")) > _MOST_SCANS:
        raise _Unfit(f"it has {scans} scans; expected at most {_MOST_SCANS}")
    _check_size(height, width)
    orientation = _exif_orientation(exif) or _xmp_orientation(xmp) or 1
    return _Jpeg((height, width) if orientation < 5 else (width, height), components, orientation)


def _exif_orientation(exif: bytes) -> int:
    """The orientation 1 to 8 in EXIF's first directory (CIPA DC-008), 0 where none can be read."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 0
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(order + "HHI", exif, entry)
            if tag == _ORIENTATION:
                layout = {1: "B", 3: "H", 4: "I"}.get(kind)
                if layout is None or count != 1:
                    return 0
                (value,) = struct.unpack_from(order + layout, exif, entry + 8)
                return int(value) if 1 <= value <= 8 else 0
    except struct.error:  # it ends before it says how the picture stands: as good as none
        pass
    return 0


def _xmp_orientation(xmp: bytes) -> int:
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp) if xmp else None
    return int(found[1]) if found else 0


def _check_size(height: int, width: int) -> None:
    if not height or not width:
        raise _Unfit(f"it has {height} x {width} pixels")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > limit:
        raise _Unfit(_bomb(f"{height} x {width} pixels are over {limit}"))


def _bomb(reason: str) -> str:
    return (
        f"it may be a decompression bomb ({reason}). If you trust the file, raise "
        "PIL.Image.MAX_IMAGE_PIXELS"
    )


def _by_turbo(
    data: bytes, jpeg: _Jpeg, mode: str, least: tuple[int, int]
) -> tuple[Pixels, Frame] | None:
    """libjpeg-turbo's decoding; None for kinds that it leaves to Pillow (odd subsamplings)."""
    import simplejpeg

    height, width = least if jpeg.orientation < 5 else least[::-1]
    cmyk = jpeg.components == 4
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data,
            "CMYK" if cmyk else MODES[mode],
            min_height=height,
            min_width=width,
            min_factor=_LEAST_FACTOR,
        )
    except ValueError as error:
        if _DAMAGE.search(str(error)):
            raise
        return None
    if cmyk:
        pixels = _from_cmyk(pixels, mode)
    elif mode == "L":
        pixels = pixels[..., 0]
    return _turn(pixels, jpeg.orientation), jpeg.frame


def _from_cmyk(pixels: Pixels, mode: str) -> Pixels:
    size = (pixels.shape[1], pixels.shape[0])
    # JPEG files hold the inks inverted: Adobe began it, and everyone followed
    return np.array(Image.frombytes("CMYK", size, pixels.tobytes(), "raw", "CMYK;I").convert(mode))


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """`pixels` upright: an orientation of EXIF undone."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _by_pillow(data: bytes, mode: str) -> tuple[Pixels, Frame]:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        _check_size(image.height, image.width)
        image.load()  # before the orientation, which may stand behind the pixels
        pixels = np.array(to_mode(_deep_tiff(image), mode))
        pixels = _turn(pixels, _orientation(image))
    return pixels, (pixels.shape[0], pixels.shape[1])


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF that cannot be read says nothing about the pixels
        return 1
    return orientation if orientation in range(1, 9) else 1


def _deep_tiff(image: Image.Image) -> Image.Image:
    """12- and 16-bit grey of a TIFF as 8-bit: Pillow tells neither the bits nor which end is white.

    Other images as they are.
    """
    if image.format != "TIFF" or not image.mode.startswith("I;16"):
        return image
    tags = cast(Any, image).tag_v2  # Pillow's class for TIFF is slow to import
    grey = np.asarray(image).astype(np.uint16) >> (tags[_BITS][0] - 8)
    return Image.fromarray((grey if tags.get(_PHOTOMETRIC) else 255 - grey).astype(np.uint8))


def _unreadable(path: object, what: str, error: Exception) -> DataError:
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return DataError(f"The {what} {path} cannot be read ({reason}).")


def _refusal(source: object, data: bytes, error: Exception) -> DataError:
    name = "The image" if isinstance(source, bytes) else f"The image {source}"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        error = _Unfit(_bomb(str(error).rstrip(".")))  # Pillow looked first
    if isinstance(error, _Unfit):
        return DataError(f"{name} was refused: {error}.")
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = (
            f"it is none of {', '.join(_FORMATS)}, or a kind of them that is not read (it begins "
            f"with {data[:16]!r})"
        )
    elif "remature end" in reason:
        reason = f"it is truncated ({reason})"
    return DataError(
        f"{name} ({len(data)} bytes) does not decode: {reason}. Remove it or fetch it again."
    )
