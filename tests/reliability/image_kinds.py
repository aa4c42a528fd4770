"""The 24 kinds of odd, broken and hostile pictures, made here; each harmless.

A kind is one file or, for the eight orientations, several. `said` is what the error about it says;
None means that it is a picture, and then it shows what Pillow shows, 24 pixels high and 36 wide.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, features

HEIGHT, WIDTH = 24, 36


@dataclass(frozen=True)
class Kind:
    """The bytes of the files, their suffix, and what is said of them if they are refused."""

    files: tuple[bytes, ...]
    suffix: str = ".jpg"
    said: str | None = None
    slack: int = 1  # how far a colour may be from Pillow's


def picture(seed: int = 0) -> Image.Image:
    """Smooth colours with a little noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + rng.integers(-8, 9, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def written(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def pillow(data: bytes) -> np.ndarray[Any, Any]:
    """What Pillow shows: the first frame, upright, without transparency, of 16 bits the upper 8."""
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            grey = (np.asarray(upright).astype(int) >> 8).astype(np.uint8)
            upright = Image.fromarray(grey)
        elif upright.mode == "P":
            upright = upright.convert("RGBA")
        plain = upright.convert("RGB")
        if plain.size != (WIDTH, HEIGHT):
            plain = plain.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
        return np.asarray(plain)


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _ycck() -> bytes:
    """A JPEG as Photoshop writes inks: the first three as YCbCr, which an Adobe marker tells."""
    planes = [*picture().convert("YCbCr").split(), picture(1).convert("L")]
    stored = Image.merge("CMYK", [ImageOps.invert(plane) for plane in planes])
    data = written(stored, "JPEG", quality=95)
    return _patched(data, data.index(b"Adobe\0") + 11, b"\2")


def _oriented(orientation: int) -> bytes:
    """A picture that lies as its EXIF says, so that upright it has the size of the others."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(orientation)
    if orientation >= 5:
        image = image.transpose(Image.Transpose.ROTATE_90)
    return written(image, "JPEG", exif=exif)


def _clear_palette() -> bytes:
    return written(picture().quantize(32), "PNG", transparency=3)


def _rgba() -> bytes:
    image = picture().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return written(image, "PNG")


def _avif() -> bytes:
    if features.check("avif"):
        return written(picture(), "AVIF")
    return b"\0\0\0 ftypavif\0\0\0\0avifmif1miafMA1B" + bytes(500)


JPEG, PNG = written(picture(), "JPEG", quality=95), written(picture(), "PNG")
PROGRESSIVE = written(picture(), "JPEG", quality=95, progressive=True)
ANIMATION = written(picture().quantize(64), "GIF", save_all=True, append_images=[picture(1)])
SCAN = JPEG.index(b"\xff\xda")
DEEP = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
LONG = np.linspace(0, 255, 10_000).astype(np.uint8).reshape(1, -1, 1).repeat(3, 2)
BOMB = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
BOMB_ROWS = zlib.compress(bytes(1_000_000))

CUT = "truncated|does not decode"

KINDS: dict[str, Kind] = {
    "JPEG cut at 10, 50 and 99 %": Kind(
        tuple(JPEG[: len(JPEG) * percent // 100] for percent in (10, 50, 99)), said=CUT
    ),
    "header only": Kind((JPEG[:SCAN],), said="does not decode"),
    "zero bytes": Kind((b"",), said="is empty"),
    "HTML page": Kind((b"<!DOCTYPE html><html>404</html>",), said="begins with b'<!DOCTYPE"),
    "corrupt middle": Kind(
        (_patched(JPEG, (SCAN + len(JPEG)) // 2, b"\xff" * 40),), said="does not decode"
    ),
    "progressive truncated": Kind((PROGRESSIVE[: len(PROGRESSIVE) // 2],), said="truncated"),
    "CMYK": Kind((written(picture().convert("CMYK"), "JPEG", quality=95),)),
    "Adobe YCCK": Kind((_ycck(),)),
    "grey": Kind((written(picture().convert("L"), "JPEG", quality=95),)),
    "16-bit PNG": Kind((written(Image.fromarray(DEEP), "PNG"),), ".png"),
    "palette with transparency": Kind((_clear_palette(),), ".png"),
    "RGBA": Kind((_rgba(),), ".png"),
    "1 x 1": Kind((written(Image.new("RGB", (1, 1), (3, 141, 159)), "PNG"),), ".png"),
    "1 x 10 000": Kind((written(Image.fromarray(LONG), "PNG"),), ".png", slack=4),
    "animated GIF": Kind((ANIMATION,), ".gif"),
    "GIF named JPEG": Kind((written(picture().quantize(64), "GIF"),)),
    "WebP": Kind((written(picture(), "WEBP"),), ".webp"),
    "AVIF": Kind((_avif(),), said="it is none of JPEG.*ftypavif"),
    "EXIF orientations": Kind(tuple(map(_oriented, range(1, 9)))),
    "EXIF or ICC garbage": Kind(
        (
            JPEG[:2] + b"\xff\xe1\x00\x14Exif\0\0garbagegarb" + JPEG[2:],
            written(picture(), "JPEG", quality=95, icc_profile=b"garbage" * 99),
        )
    ),
    "bad PNG checksum": Kind((_patched(PNG, 900, bytes([PNG[900] ^ 1])),), ".png", CUT),
    "truncated PNG": Kind((PNG[: len(PNG) // 2],), ".png", "truncated"),
    "PNG bomb": Kind(
        (_png((b"IHDR", BOMB), (b"IDAT", BOMB_ROWS), (b"IEND", b"")),),
        ".png",
        "may be a decompression bomb",
    ),
    "TIFF of several pages": Kind(
        (written(picture(), "TIFF", save_all=True, append_images=[picture(1)]),), ".tiff"
    ),
}
