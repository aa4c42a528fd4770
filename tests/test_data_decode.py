"""Decoding of sound files: right colours, upright, at the right scale, whoever wrote them.

Files that Pillow does not write are written here by hand, and what they hold is known; for the
rest Pillow's own reading is the oracle.
"""

from __future__ import annotations

import base64
import io
import math
import random
import struct
import tarfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_jpeg

from treadle.data.decode import open_image, read_file, read_pixels
from treadle.errors import DataError, UsageError

Array = np.ndarray[Any, Any]


def picture(height: int = 37, width: int = 52, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise: what JPEG is made for."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + rng.integers(-8, 9, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def written(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def by_pillow(data: bytes, mode: str = "RGB") -> Array:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert(mode)).astype(int)


def by_torchvision(data: bytes) -> Array:
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torchvision gives up decoding
        return decode_jpeg(raw, ImageReadMode.RGB).permute(1, 2, 0).numpy().astype(int)


# --- JPEG ---------------------------------------------------------------------------------------

JPEGS: dict[str, tuple[str, dict[str, Any]]] = {
    "4:2:0": ("RGB", {"quality": 80}),
    "4:2:2": ("RGB", {"subsampling": "4:2:2"}),
    "4:4:4": ("RGB", {"subsampling": "4:4:4", "quality": 95}),
    "4:1:1": ("RGB", {"subsampling": "4:1:1"}),
    "progressive": ("RGB", {"progressive": True}),
    "restarts": ("RGB", {"restart_marker_blocks": 2}),
    "rgb": ("RGB", {"keep_rgb": True}),
    "grey": ("L", {}),
    "progressive grey": ("L", {"progressive": True}),
    "cmyk": ("CMYK", {}),
    "profile": ("RGB", {"icc_profile": b"no profile at all"}),
    "comment": ("RGB", {"comment": b"\xff\xda\xff\xd9 " * 99}),
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_equals_pillow_within_rounding(kind: str, mode: str) -> None:
    colours, options = JPEGS[kind]
    data = written(picture().convert(colours), "JPEG", **options)
    pixels, frame = read_pixels(data, mode)
    assert pixels.shape == ((37, 52, 3) if mode == "RGB" else (37, 52))
    assert frame == (37, 52)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable
    difference = np.abs(pixels - by_pillow(data, mode))
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
def test_jpeg_of_any_size(height: int, width: int, quality: int, subsampling: int) -> None:
    data = written(picture(height, width), "JPEG", quality=quality, subsampling=subsampling)
    assert np.abs(read_pixels(data)[0] - by_pillow(data)).max() <= 1


def test_ycck() -> None:
    """Adobe's other four colours: CMY as YCbCr, and black, all inverted."""
    inks = np.asarray(picture().convert("CMYK")).copy()
    inks[..., 3] = np.arange(52)
    turned = Image.fromarray(inks[..., :3]).convert("YCbCr")
    planes = np.dstack([255 - np.asarray(turned), inks[..., 3]])  # which the writer inverts
    stored = Image.frombytes("CMYK", (52, 37), planes.tobytes())
    data = written(stored, "JPEG", quality=98, subsampling=0)
    at = data.index(b"Adobe") + 11
    data = data[:at] + b"\2" + data[at + 1 :]
    want = np.asarray(Image.frombytes("CMYK", (52, 37), inks.tobytes()).convert("RGB"))
    assert np.abs(read_pixels(data)[0].astype(int) - want).mean() < 3
    assert np.abs(read_pixels(data)[0] - by_pillow(data)).max() <= 1


# a gradient of 16 x 16 pixels, arithmetic coding, as libjpeg-turbo's cjpeg writes it
ARITHMETIC = (
    "|JeWF01!$>Nk#wx0RR9200961|JwjV00RO70|EjA0|NsD0|NvF2n7WM1O*BQ2L=cX3JeSj3JVJj4iXRz4iOFu3lJ6%"
    "5fc;@6%`B*7Z?^47!ni}6#v@*LjeN>1O)^I2?YfS6b%av6ciK`6ciK`6ciK`6ciK`6ciK`6ciK`6ciK`6ciK`6ciK`"
    "6ciK`6ciK`6ciK`6ciK`6cqo-01*fP5C9MZ0TBQK5di}c0sqVZ3IGrg1pyEd1^?Or3<CiG0ucid06zf#0Na+bxFxQC"
    "xIN{+Hc?a7M8lh=<@XM-BYC)db<lK!9ffm_mItC)#Ae3K3Mw5hW`TZ7u$;_VHigdmw^s3sj#U5I"
)


def test_arithmetic_coding() -> None:
    down, right = np.mgrid[:16, :16] * 16
    want = np.dstack([right, down, 255 - right])
    assert np.abs(read_pixels(base64.b85decode(ARITHMETIC))[0] - want).max() <= 5


# the same picture with its colours at a fourth of the width and half of the height
ODD = (
    "|JeWF01!$>Nk#wx0RR9200961|JwjV00RO70|EjA0|NsD0|NvF2n7WM1O*BQ2L=cX3JeSj3JVJj4iXRz4iOFu3lJ6%"
    "5fc;@6%`B*7Z?^47!ni}6#v@*LjeN>1O)^I2?YfS6b%av6ciK`6ciK`6ciK`6ciK`6ciK`6ciK`6ciK`6ciK`6ciK`"
    "6ciK`6ciK`6ciK`6cqo!01*fP5C9MZ0YU%*5di}c0sq7R7XSeP0RaF20000000000000081_%Gd02vSf0R;d600000"
    "00000000001qUNCq5s4H6afJM000000000000000000O7!~h!+000L800000000000000000RaG5h5n=|Jncy0|5X6"
    "5d#qbKLDDM8k)n0KtyV*4ggUojZI<0eu&jp8~`YH78+x1(iWQK?s%*85C7Q"
)


def test_a_subsampling_that_turbo_leaves_to_pillow() -> None:
    data = base64.b85decode(ODD)
    assert np.array_equal(read_pixels(data)[0], by_pillow(data))
    assert np.abs(read_pixels(data, "L")[0] - by_pillow(data, "L")).max() <= 1


def test_real_pictures(imagenette_mirror: Path) -> None:
    with tarfile.open(imagenette_mirror / "imagenette2-160.tgz") as archive:
        members = [member for member in archive if member.isfile()][:80]
        for member in members:
            data = archive.extractfile(member).read()  # type: ignore[union-attr]
            pixels = read_pixels(data)[0].astype(int)
            assert np.abs(pixels - by_pillow(data)).max() <= 1
            assert np.abs(pixels - by_torchvision(data)).max() <= 2


@pytest.mark.parametrize("kind", ["4:2:0", "4:2:2", "4:4:4", "progressive", "grey"])
def test_jpeg_equals_torchvision_within_rounding(kind: str) -> None:
    colours, options = JPEGS[kind]
    data = written(picture().convert(colours), "JPEG", **options)
    assert np.abs(read_pixels(data)[0] - by_torchvision(data)).max() <= 2


def test_a_plain_jpeg_costs_no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = written(picture(), "JPEG", exif=exif)
    want = by_pillow(data)
    monkeypatch.setattr(Image, "open", None)
    assert np.abs(read_pixels(data)[0] - want).max() <= 1


# --- the goal -----------------------------------------------------------------------------------


def scale(frame: tuple[int, int], goal: tuple[int, int]) -> tuple[int, int]:
    for eighths in (1, 2, 3, 4, 5):
        size = math.ceil(frame[0] * eighths / 8), math.ceil(frame[1] * eighths / 8)
        if all(side >= min(pair) for side, *pair in zip(size, goal, frame, strict=True)):
            return size
    return frame


@example(frame=(1, 2), goal=(2, 1), orientation=1, colours="RGB")
@settings(max_examples=60, deadline=None)
@given(
    frame=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    goal=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    orientation=st.integers(1, 8),
    colours=st.sampled_from(["RGB", "L", "CMYK"]),
)
def test_the_smallest_scale_that_reaches_the_goal(
    frame: tuple[int, int], goal: tuple[int, int], orientation: int, colours: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    height, width = frame if orientation < 5 else frame[::-1]
    data = written(picture(height, width).convert(colours), "JPEG", exif=exif)
    asked = []
    pixels, told = read_pixels(data, "RGB", lambda size: asked.append(size) or goal)  # type: ignore[func-returns-value]
    assert asked == [frame] and told == frame
    assert pixels.shape == (*scale(frame, goal), 3)
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("eighths", [1, 2, 4])
def test_a_smaller_scale_is_the_picture_smaller(eighths: int) -> None:
    data = written(picture(160, 240), "JPEG", quality=95)
    size = (160 * eighths // 8, 240 * eighths // 8)
    pixels, frame = read_pixels(data, goal=lambda frame: size)
    assert frame == (160, 240)
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", size[::-1])
        assert np.abs(pixels - np.asarray(image).astype(int)).max() <= 1
        image = Image.open(io.BytesIO(data)).reduce(8 // eighths)
    assert np.abs(pixels - np.asarray(image).astype(int)).mean() < 2


def test_other_formats_come_whole() -> None:
    data = written(picture(), "PNG")
    pixels, frame = read_pixels(data, goal=lambda frame: (5, 5))
    assert pixels.shape == (37, 52, 3) and frame == (37, 52)


def test_what_a_goal_raises_is_its_own() -> None:
    with pytest.raises(ZeroDivisionError):
        read_pixels(written(picture(), "JPEG"), goal=lambda frame: (1 // 0, 1))


# --- upright ------------------------------------------------------------------------------------

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tiff": "TIFF"}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_are_upright(tmp_path: Path, orientation: int, suffix: str, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    picture().save(path, exif=exif)
    image = open_image(path, mode)
    assert image.size == ((52, 37) if orientation < 5 else (37, 52)) and image.mode == mode
    pixels, frame = read_pixels(path, mode)
    assert np.array_equal(np.asarray(image), pixels) and frame == pixels.shape[:2]
    assert np.abs(pixels - by_pillow(path.read_bytes(), mode)).max() <= (1 if mode == "RGB" else 4)


@pytest.mark.parametrize("format", FORMATS.values())
def test_what_the_orientations_mean(format: str) -> None:
    """Each names the sides of the scene where the stored first row and first column are."""
    scene = np.zeros((32, 48, 3), np.uint8)
    scene[:16, :24], scene[:16, 24:], scene[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored = {1: scene, 2: scene[:, ::-1], 3: scene[::-1, ::-1], 4: scene[::-1]}
    stored |= {5: scene.swapaxes(0, 1), 6: np.rot90(scene), 8: np.rot90(scene, -1)}
    stored[7] = scene[::-1, ::-1].swapaxes(0, 1)
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = written(Image.fromarray(np.ascontiguousarray(pixels)), format, exif=exif)
        assert np.abs(read_pixels(data)[0].astype(int) - scene).mean() < 8, orientation


def with_segments(*segments: bytes, after: int = 2) -> bytes:
    data = written(picture(), "JPEG")
    body = b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments)
    return data[:after] + body + data[after:]


def exif_segment(order: str, kind: int, count: int, value: bytes, tag: int = 0x0112) -> bytes:
    entry = struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + magic + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


XMP = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
SIX_INTEL, SIX_MOTOROLA = exif_segment("<", 3, 1, b"\6"), exif_segment(">", 3, 1, b"\0\6")


@pytest.mark.parametrize(
    ("segments", "turned"),
    [
        ([SIX_INTEL], True),
        ([SIX_MOTOROLA], True),
        ([exif_segment(">", 4, 1, b"\0\0\0\6")], True),
        ([exif_segment("<", 1, 1, b"\6")], True),
        ([SIX_INTEL[:14], b"Exif\0\0" + SIX_INTEL[14:]], True),
        ([b"something else", SIX_INTEL], True),
        ([XMP], True),
        ([exif_segment("<", 3, 1, b"\6", tag=0x010F), XMP], True),
        ([exif_segment("<", 3, 1, b"\1"), XMP], False),
        ([exif_segment("<", 3, 1, b"\x63")], False),
        ([exif_segment("<", 3, 1, b"\0")], False),
        ([exif_segment("<", 3, 2, b"\6")], False),
        ([exif_segment("<", 2, 1, b"\6")], False),
        ([SIX_INTEL[:20]], False),
        ([b"Exif\0\0"], False),
        ([b"Exif\0\0garbage, as some cameras write it" * 9], False),
        ([b"Exif\0\0II*\0\xff\xff\xff\xff"], False),
    ],
)
def test_exif_and_xmp(segments: list[bytes], turned: bool) -> None:
    pixels, frame = read_pixels(with_segments(*segments))
    assert frame == ((52, 37) if turned else (37, 52))
    plain = read_pixels(written(picture(), "JPEG"))[0]
    assert np.array_equal(pixels, np.rot90(plain, -1) if turned else plain)


def test_exif_behind_other_segments() -> None:
    data = written(picture(), "JPEG")
    for marker in (b"\xff\xdb", b"\xff\xc0", b"\xff\xc4", b"\xff\xda"):
        assert read_pixels(with_segments(SIX_INTEL, after=data.index(marker)))[1] == (52, 37)


@settings(max_examples=200, deadline=None)
@given(tail=st.binary(max_size=60), at=st.integers(0, 40))
def test_any_exif_leaves_the_pixels(tail: bytes, at: int) -> None:
    pixels = read_pixels(with_segments(SIX_INTEL[:at] + tail))[0]
    assert sorted(pixels.shape) == [3, 37, 52]


# --- all kinds ----------------------------------------------------------------------------------


def test_from_a_path_or_from_bytes(tmp_path: Path) -> None:
    for suffix in ("jpg", "png", "webp", "bmp", "gif", "tiff"):
        path = tmp_path / f"a.{suffix}"
        picture().save(path)
        data = read_file(path)
        assert data == path.read_bytes()
        for source in (path, str(path), data):
            pixels, frame = read_pixels(source)
            assert np.array_equal(pixels, open_image(path)) and frame == (37, 52)
            assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable
        if suffix != "jpg":
            assert np.array_equal(pixels, by_pillow(data))


@example(height=1, width=1)
@example(height=1, width=5000)
@example(height=5000, width=1)
@settings(max_examples=10, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_every_size_in_every_format(height: int, width: int) -> None:
    image = picture(height, width)
    for format in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        for mode, shape in (("RGB", (height, width, 3)), ("L", (height, width))):
            pixels, frame = read_pixels(written(image, format), mode)
            assert pixels.shape == shape and frame == (height, width)


@pytest.mark.parametrize("mode", ["CMYK", "rgb", "", None])
def test_an_unknown_mode(mode: Any) -> None:
    with pytest.raises(UsageError, match=r"is not one of 'RGB', 'L'\."):
        read_pixels(written(picture(), "PNG"), mode)


def test_bits_depend_on_no_thread_and_no_history() -> None:
    sound = [written(picture(seed=n), f) for n in range(3) for f in ("JPEG", "PNG", "WEBP", "GIF")]
    sound += [written(picture(90, 160, n), "JPEG", progressive=True) for n in range(6)]
    sound += [written(picture().convert("CMYK"), "JPEG"), with_segments(SIX_INTEL)]
    broken = [data[: len(data) // 2] for data in sound]
    goals: list[Callable[[tuple[int, int]], tuple[int, int]] | None]
    goals = [None, lambda frame: (20, 20)]
    tasks = [(data, goal) for data in sound + broken for goal in goals]

    def outcome(task: tuple[bytes, Any]) -> bytes | str:
        try:
            return read_pixels(task[0], goal=task[1])[0].tobytes()
        except DataError as error:
            return str(error)

    alone = {task: outcome(task) for task in tasks}
    order = tasks * 4
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(outcome, order)) == [alone[task] for task in order]
