"""Decoding against Pillow on real files of every kind."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from treadle.data import open_image
from treadle.errors import DataError, UsageError


def picture(height: int = 37, width: int = 52, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise: what JPEG is made for."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + rng.integers(-8, 9, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def by_pillow(path: Path, mode: str = "RGB") -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert(mode)).astype(int)


JPEGS: dict[str, tuple[str, dict[str, Any]]] = {
    "4:2:0": ("RGB", {"quality": 80}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:4:4": ("RGB", {"subsampling": 0, "quality": 95}),
    "progressive": ("RGB", {"progressive": True}),
    "rgb": ("RGB", {"keep_rgb": True}),
    "grey": ("L", {}),
    "cmyk": ("CMYK", {}),
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_equals_pillow_within_rounding(tmp_path: Path, kind: str, mode: str) -> None:
    colours, options = JPEGS[kind]
    picture().convert(colours).save(tmp_path / "a.jpg", **options)
    image = open_image(tmp_path / "a.jpg", mode)
    assert (image.mode, image.size) == (mode, (52, 37))
    difference = np.abs(np.asarray(image).astype(int) - by_pillow(tmp_path / "a.jpg", mode))
    # grey is JPEG's own luma here, Pillow's of the already rounded and clipped RGB there
    assert difference.max() <= (1 if mode == "RGB" else 4)
    assert difference.mean() < 1


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    quality=st.integers(5, 98),
    subsampling=st.integers(0, 2),
)
def test_jpeg_of_any_size(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    width: int,
    quality: int,
    subsampling: int,
) -> None:
    path = tmp_path_factory.mktemp("jpeg") / "a.jpg"
    picture(height, width).save(path, quality=quality, subsampling=subsampling)
    ours = np.asarray(open_image(path)).astype(int)
    assert np.abs(ours - by_pillow(path)).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "gif", "tiff"])
def test_other_formats_are_pillows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    picture().save(path)
    assert np.array_equal(np.asarray(open_image(path)), by_pillow(path))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_images_are_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    picture().save(path, exif=exif)
    image = open_image(path)
    assert image.size == ((52, 37) if orientation < 5 else (37, 52))
    assert np.abs(np.asarray(image).astype(int) - by_pillow(path)).max() <= 1


def test_transparency_palettes_and_deep_grey(tmp_path: Path) -> None:
    rgba = picture().convert("RGBA")
    rgba.putalpha(Image.fromarray(np.full((37, 52), 9, np.uint8)))
    rgba.save(tmp_path / "alpha.png")
    assert np.array_equal(np.asarray(open_image(tmp_path / "alpha.png")), np.asarray(picture()))

    palette = picture().quantize(16)
    palette.save(tmp_path / "p.png", transparency=bytes([0] * 8 + [255] * 8))
    assert np.array_equal(
        np.asarray(open_image(tmp_path / "p.png")), np.asarray(palette.convert("RGB"))
    )

    deep = np.arange(37 * 52, dtype=np.uint16).reshape(37, 52) * 34
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(open_image(tmp_path / "deep.png", "L")), deep >> 8)


def jpeg() -> bytes:
    stream = io.BytesIO()
    picture().save(stream, "JPEG")
    return stream.getvalue()


def png() -> bytes:
    stream = io.BytesIO()
    picture().save(stream, "PNG")
    return stream.getvalue()


def of_mode_f() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ones((4, 4), np.float32)).save(stream, "TIFF")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "is empty"),
        (b"this is no image", "does not decode: not an image file"),
        (jpeg()[:-100], "does not decode: .*truncated"),
        (jpeg()[:12], "does not decode"),
        (b"\xff\xd8" + bytes(50), "does not decode"),
        (png()[: len(png()) // 2], "does not decode"),
        (of_mode_f(), "no 8-bit meaning"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "does not decode"),
    ],
    ids=["empty", "text", "half", "head", "zeros", "half-png", "float", "postscript"],
)
def test_what_does_not_decode_is_named(tmp_path: Path, data: bytes, match: str) -> None:
    (tmp_path / "bad.jpg").write_bytes(data)
    with pytest.raises(DataError, match=match) as caught:
        open_image(tmp_path / "bad.jpg")
    assert str(tmp_path / "bad.jpg") in str(caught.value)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_decompression_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    picture().save(tmp_path / "bomb", format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 37 * 52 // 3)
    with pytest.raises(DataError, match=r"bomb was refused: .*MAX_IMAGE_PIXELS"):
        open_image(tmp_path / "bomb")


def test_a_missing_file_and_an_unknown_mode(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jpg cannot be read"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(UsageError, match="'CMYK'"):
        open_image(tmp_path / "none.jpg", "CMYK")
