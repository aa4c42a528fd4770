"""Hostile and broken pictures: each either decodes to the right pixels, or is named in an error.

Never grey where pixels are missing, never a crash, a hang, or an exception of another kind.
"""

from __future__ import annotations

import io
import os
import re
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from treadle.data.decode import open_image, read_file, read_pixels, to_mode
from treadle.errors import DataError, UsageError

# Pillow warns of what it finds odd before it fails, or decodes all the same
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def picture(mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((52, 37), Image.Resampling.BICUBIC)).astype(int)
    noisy = smooth + rng.integers(-8, 9, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def written(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


JPEG, PNG = written(picture(), "JPEG"), written(picture(), "PNG")
PROGRESSIVE = written(picture(), "JPEG", progressive=True)
FRAMES = {"save_all": True, "append_images": [picture().rotate(90)]}

SOUND: dict[str, bytes] = {
    "jpeg": JPEG,
    "jpeg-progressive": PROGRESSIVE,
    "jpeg-restarts": written(picture(), "JPEG", restart_marker_rows=1),
    "jpeg-grey": written(picture("L"), "JPEG"),
    "jpeg-cmyk": written(picture("CMYK"), "JPEG"),
    "png": PNG,
    "png-palette": written(picture("P"), "PNG"),
    "webp": written(picture(), "WEBP"),
    "webp-lossless": written(picture(), "WEBP", lossless=True),
    "webp-frames": written(picture(), "WEBP", **FRAMES),
    "gif": written(picture(), "GIF"),
    "gif-frames": written(picture("P"), "GIF", **FRAMES),
    "bmp": written(picture(), "BMP"),
    "bmp-palette": written(picture("P"), "BMP"),
    "tiff": written(picture(), "TIFF"),
    "tiff-lzw": written(picture(), "TIFF", compression="tiff_lzw"),
    "tiff-deflate": written(picture(), "TIFF", compression="tiff_adobe_deflate"),
    "tiff-frames": written(picture(), "TIFF", **FRAMES),
}


def outcome(data: bytes) -> np.ndarray[Any, Any] | str:
    """The pixels, or the message of a DataError; no other exception passes."""
    try:
        return read_pixels(data)[0]
    except DataError as error:
        return str(error)


# --- files that are none ------------------------------------------------------------------------


def refused(path: Path | str, match: str, within: float = 5) -> None:
    start = time.perf_counter()
    for read in (read_pixels, open_image, read_file):
        with pytest.raises(DataError, match=match) as caught:
            read(path)  # type: ignore[operator]
        assert str(path) in str(caught.value)
    assert time.perf_counter() - start < within


def test_what_is_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.jpg", r"cannot be read \(No such file or directory\)")
    refused(tmp_path, "it is a folder, not a file")
    refused("/dev/zero", "it is a pipe or a device, not a file")
    refused("a\0b.jpg", "cannot be read .*null")
    refused(tmp_path / ("x" * 300), "cannot be read .*name too long")
    (tmp_path / "empty.jpg").touch()
    refused(tmp_path / "empty.jpg", r"is empty \(0 bytes\)\. Remove it")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    refused(tmp_path / "dangling.jpg", "No such file")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    refused(tmp_path / "loop.jpg", "symbolic links")


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "pipe.jpg", "it is a pipe or a device")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jpg"))
        refused(tmp_path / "socket.jpg", "cannot be read")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", forbidden)
    refused(tmp_path / "a.jpg", r"cannot be read \(Permission denied\)")


def test_a_disk_that_fails_and_one_that_delivers_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "a.jpg", os.read
    path.write_bytes(JPEG)
    monkeypatch.setattr(os, "read", lambda handle, size: read(handle, min(size, 100)))
    assert read_file(path) == JPEG

    def broken(handle: int, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    opened = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(os, "read", broken)
    refused(path, r"cannot be read \(Input/output error\)")
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


def test_a_file_beyond_all_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    path.touch()
    os.truncate(path, (1 << 30) + 1)  # a hole: takes no room
    refused(path, "has 1073741825 bytes; expected at most 1073741824")


@pytest.mark.parametrize("source", [None, 3.5, ["a.jpg"], {}])
def test_what_is_no_path(source: Any) -> None:
    with pytest.raises(UsageError, match=r"The image .* is not a path \(.*"):
        read_pixels(source)


def test_a_link_to_a_sound_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    (tmp_path / "b.jpg").symlink_to(tmp_path / "a.jpg")
    assert np.array_equal(read_pixels(tmp_path / "b.jpg")[0], read_pixels(JPEG)[0])


# --- files that are no sound picture ------------------------------------------------------------


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


SIZES = JPEG.index(b"\xff\xc0") + 5  # of the height and the width
MIDDLE = len(JPEG) * 4 // 5  # in the scan
FLOATS = written(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
INTEGERS = written(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF")
AVIF = b"\0\0\0 ftypavif\0\0\0\0avifmif1miafMA1B"
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
MANY_SCANS = PROGRESSIVE[:-2] + LAST_SCAN * 600 + PROGRESSIVE[-2:]

BROKEN: dict[str, tuple[bytes, str]] = {
    "text": (b"this is no image", r"it is none of JPEG, PNG, .* \(it begins with b'this is"),
    "web-page": (b"<!DOCTYPE html><html>404", "begins with b'<!DOCTYPE html>"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "begins with b'%!PS"),
    "avif": (AVIF, "ftypavif"),
    "zeros": (bytes(5000), "it is none of JPEG"),
    "jpeg-10": (JPEG[: len(JPEG) // 10], "does not decode"),
    "jpeg-50": (JPEG[: len(JPEG) // 2], "does not decode"),
    "jpeg-99": (JPEG[:-10], "it is truncated"),
    "jpeg-without-end": (JPEG[:-2], "it is truncated"),
    "jpeg-header-only": (JPEG[: JPEG.index(b"\xff\xda")], "does not decode"),
    "jpeg-start-only": (b"\xff\xd8", "does not decode"),
    "jpeg-then-zeros": (JPEG[:MIDDLE] + bytes(5000), "it is truncated"),
    "jpeg-cut-and-ended": (JPEG[:MIDDLE] + b"\xff\xd9", "it is truncated"),
    "jpeg-middle-ones": (patched(JPEG, MIDDLE, b"\xff" * 40), "does not decode"),
    "jpeg-other-table": (patched(JPEG, JPEG.index(b"\xff\xc4") + 5, bytes(16)), "does not decode"),
    "jpeg-not-begun": (JPEG[2:], "it is none of JPEG"),
    "progressive-50": (PROGRESSIVE[: len(PROGRESSIVE) // 2], "truncated"),
    "progressive-cut-and-ended": (PROGRESSIVE[:-9] + b"\xff\xd9", "it is truncated"),
    "cmyk-cut-and-ended": (SOUND["jpeg-cmyk"][:-99] + b"\xff\xd9", "it is truncated"),
    "jpeg-12-bit": (patched(JPEG, SIZES - 1, b"\x0c"), "was refused: it has 12 bits a sample"),
    "jpeg-lossless": (patched(JPEG, SIZES - 4, b"\xc3"), "does not decode"),
    "jpeg-no-height": (patched(JPEG, SIZES, bytes(2)), "was refused: it has 0 x 52 pixels"),
    "jpeg-no-width": (patched(JPEG, SIZES + 2, bytes(2)), "was refused: it has 37 x 0 pixels"),
    "jpeg-two-components": (patched(JPEG, SIZES + 4, b"\2"), "does not decode"),
    "jpeg-many-scans": (MANY_SCANS, r"was refused: it has 6\d\d scans; expected at most 500"),
    "png-half": (PNG[: len(PNG) // 2], "truncated"),
    "png-bad-sum": (patched(PNG, 3000, bytes([PNG[3000] ^ 1])), "does not decode"),
    "png-bad-sum-of-header": (patched(PNG, 29, bytes(4)), "does not decode"),
    "png-no-width": (PNG[:16] + bytes(4) + PNG[20:], "does not decode"),
    "gif-no-frame": (SOUND["gif"][:800], "does not decode"),
    "bmp-half": (SOUND["bmp"][:3000], "truncated"),
    "webp-half": (SOUND["webp"][:300], "does not decode"),
    "tiff-half": (SOUND["tiff"][:3000], "does not decode"),
    "float": (FLOATS, r"was refused: pixels of mode 'F' .*; scale them to 0\.\.255 first"),
    "integers": (INTEGERS, "was refused: pixels of mode 'I' have no 8-bit meaning"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_does_not_decode_is_named(tmp_path: Path, kind: str) -> None:
    data, match = BROKEN[kind]
    path = tmp_path / f"{kind}.jpg"
    path.write_bytes(data)
    for mode in ("RGB", "L"):
        for goal in (None, lambda frame: (5, 5)):
            with pytest.raises(DataError, match=match) as caught:
                read_pixels(path, mode, goal)
            assert str(caught.value).startswith(f"The image {path} ")
            assert str(caught.value).endswith(".") and "BytesIO" not in str(caught.value)
    assert isinstance(outcome(data), str)


def test_pixel_types_without_a_meaning() -> None:
    for mode in ("I", "F"):
        with pytest.raises(ValueError, match=f"pixels of mode '{mode}' have no 8-bit meaning"):
            to_mode(Image.new(mode, (3, 3)), "RGB")


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        at += 12 + size


def png_of(parts: list[tuple[bytes, bytes]]) -> bytes:
    body = b""
    for kind, data in parts:
        body += struct.pack(">I", len(data)) + kind + data
        body += struct.pack(">I", zlib.crc32(kind + data))
    return PNG[:8] + body


def jfif(data: bytes, version: int) -> bytes:
    return patched(data, data.index(b"JFIF") + 5, bytes([version]))


WITH_EXIF = JPEG[:2] + b"\xff\xe1\x00\x14Exif\0\0garbagegarb" + JPEG[2:]
PARTS = list(chunks(PNG))
EXTRA = (b"iCCP", b"profile\0\0garbage"), (b"eXIf", b"garbage"), (b"teXt", b"\xff" * 50)

ODD: dict[str, tuple[bytes, bytes]] = {
    "jpeg-bytes-before-end": (JPEG[:-2] + b"\0padding" * 9 + JPEG[-2:], JPEG),
    "jpeg-bytes-between": (JPEG.replace(b"\xff\xc0", b"hello\xff\xc0", 1), JPEG),
    "jpeg-fill-bytes": (JPEG.replace(b"\xff\xc0", b"\xff\xff\xff\xff\xc0", 1), JPEG),
    "jpeg-of-the-future": (jfif(JPEG, 9), JPEG),
    "jpeg-twice": (JPEG + JPEG, JPEG),
    "jpeg-bad-exif": (WITH_EXIF, JPEG),
    "jpeg-bad-profile": (written(picture(), "JPEG", icc_profile=b"garbage" * 99), JPEG),
    "png-odd-chunks": (png_of([PARTS[0], *EXTRA, *PARTS[1:]]), PNG),
    "png-without-end": (PNG[:-12], PNG),
    "gif-without-end": (SOUND["gif"][:-1], SOUND["gif"]),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_around_the_pixels_leaves_them(kind: str) -> None:
    odd, plain = ODD[kind]
    assert odd != plain
    assert np.array_equal(read_pixels(odd)[0], read_pixels(plain)[0])


@pytest.mark.parametrize("kind", SOUND)
def test_bytes_after_the_end(kind: str) -> None:
    want = read_pixels(SOUND[kind])[0]
    for tail in (b"\0", b"\r\n", bytes(70_000), b"<html>" * 99, JPEG):
        assert np.array_equal(read_pixels(SOUND[kind] + tail)[0], want)


def test_names_do_not_matter(tmp_path: Path) -> None:
    for kind, data in SOUND.items():
        (tmp_path / "a.jpg").write_bytes(data)
        assert np.array_equal(read_pixels(tmp_path / "a.jpg")[0], outcome(data)), kind


# --- decompression bombs ------------------------------------------------------------------------


def tiff_of(width: int, height: int) -> bytes:
    fields = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 278: height, 279: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(fields)) + entries + bytes(4)


HEADER = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
BOMBS = {
    "jpeg": patched(JPEG, SIZES, b"\xff" * 4),
    "jpeg-progressive": patched(PROGRESSIVE, PROGRESSIVE.index(b"\xff\xc2") + 5, b"\xff" * 4),
    "png": png_of([(b"IHDR", HEADER), (b"IDAT", zlib.compress(bytes(10_000_000))), (b"IEND", b"")]),
    "gif": patched(SOUND["gif"], 6, b"\xff" * 4),
    "bmp": patched(SOUND["bmp"], 18, struct.pack("<ii", 1 << 30, 1 << 30)),
    "tiff": tiff_of(1 << 20, 1 << 20),
    "webp": patched(SOUND["webp-frames"], 24, b"\xff\xff\x00\xff\xff\x00"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_decompression_bombs(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(BOMBS[kind])
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"may be a decompression bomb \(.*MAX_IMAGE_PIXELS\."):
        read_pixels(path)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("kind", SOUND)
def test_the_limit_is_pillows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = read_pixels(SOUND[kind])[0]
    for limit, fits in ((37 * 52 - 1, False), (37 * 52 // 3, False), (37 * 52, True), (None, True)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        found = outcome(SOUND[kind])
        assert np.array_equal(found, want) if fits else "decompression bomb" in found, limit


def test_bombs_cost_little_memory(tmp_path: Path) -> None:
    for kind, data in BOMBS.items():
        (tmp_path / kind).write_bytes(data)
    script = """
import pathlib, resource, sys
from treadle.data.decode import read_pixels
from treadle.errors import DataError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_pixels(sys.argv[2])
before, refused = peak(), 0
for path in pathlib.Path(sys.argv[1]).iterdir():
    try:
        read_pixels(path)
    except DataError:
        refused += 1
print(refused, peak() - before)
"""
    sound = tmp_path.parent / "sound.jpg"
    sound.write_bytes(JPEG)
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, tmp_path, sound],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    refusals, kilobytes = map(int, found.stdout.split())
    assert refusals == len(BOMBS)
    assert kilobytes < 50_000


# --- any bytes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOUND)
def test_cut_anywhere_it_is_an_error_or_whole(kind: str) -> None:
    data = SOUND[kind]
    want = read_pixels(data)[0]
    ends = range(max(0, len(data) - 40), len(data))
    for cut in [*range(1, len(data), max(1, len(data) // 60)), *ends]:
        found = outcome(data[:cut])
        assert isinstance(found, str) or np.array_equal(found, want), cut
        if kind.startswith("jpeg"):
            assert isinstance(found, str), cut


@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0, 1))
def test_a_cut_scan_that_is_ended_is_no_picture(cut: float) -> None:
    # a progressive one that ends behind a whole scan would be sound, only coarser
    for data in (JPEG, SOUND["jpeg-cmyk"], SOUND["jpeg-restarts"], SOUND["jpeg-grey"]):
        scan = data.index(b"\xff\xda") + 14
        at = scan + int(cut * (len(data) - 12 - scan))
        assert isinstance(outcome(data[:at] + b"\xff\xd9"), str)


@pytest.mark.parametrize("kind", SOUND)
@settings(max_examples=60, deadline=5000)
@given(data=st.data())
def test_flipped_bytes_are_an_error_or_a_picture(kind: str, data: st.DataObject) -> None:
    sound = SOUND[kind]
    places = st.integers(0, len(sound) - 1) | st.integers(0, min(199, len(sound) - 1))
    flips = data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8))
    broken = bytearray(sound)
    for place, value in flips:
        broken[place] = value
    first, second = outcome(bytes(broken)), outcome(bytes(broken))
    if isinstance(first, str):
        assert re.match("The image .*(does not decode|was refused): ", first, re.DOTALL)
        assert first == second
    else:  # twice the same: nothing comes from memory that was never written
        assert np.array_equal(first, second)
        assert first.ndim == 3 and first.dtype == np.uint8 and first.size


STARTS = [data[:n] for data in SOUND.values() for n in (2, 4, 12, 30, 200)]


@settings(max_examples=200, deadline=5000)
@given(start=st.sampled_from(STARTS), tail=st.binary(max_size=300))
def test_any_bytes_behind_a_sound_start(start: bytes, tail: bytes) -> None:
    outcome(start + tail)


@settings(max_examples=200, deadline=5000)
@given(
    parts=st.lists(
        st.sampled_from([b"\xff", b"\xd8", b"\xe1", b"\xc0", b"\xda", b"\0\x11", b"\0"])
        | st.binary(max_size=20),
        max_size=30,
    )
)
def test_any_segments(parts: list[bytes]) -> None:
    outcome(b"\xff\xd8\xff" + b"".join(parts))
