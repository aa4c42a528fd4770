"""Decoding of what Pillow does not write: files made here by hand, whose pixels are known."""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from treadle.data.decode import read_pixels, to_mode

Array = np.ndarray[Any, Any]


def picture(seed: int = 0) -> Image.Image:
    """Smooth colours, 37 x 52."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((52, 37), Image.Resampling.BICUBIC)


def written(image: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def packed(samples: Array, bits: int) -> list[bytes]:
    """Rows of samples (H, W, channels), the upper bit first, each row filled to whole bytes."""
    rows = samples.reshape(len(samples), -1, 1).astype(int)
    binary = (rows >> np.arange(bits)[::-1]) & 1
    return [np.packbits(row).tobytes() for row in binary.reshape(len(samples), -1)]


# --- PNG ----------------------------------------------------------------------------------------

ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
ADAM7.append((0, 1, 1, 2))


def png(samples: Array, bits: int, colours: int, *chunks: bytes, interlaced: bool = False) -> bytes:
    """A PNG of samples (H, W, channels), as its specification (ISO 15948) has it."""
    parts = [samples]
    if interlaced:
        parts = [samples[y::down, x::right] for x, y, right, down in ADAM7]
    raw = b"".join(b"\0" + row for part in parts if part.size for row in packed(part, bits))
    head = struct.pack(">IIBBBBB", *samples.shape[1::-1], bits, colours, 0, 0, interlaced)
    body = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def noise(channels: int, bits: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 1 << bits, (13, 11, channels))


def to8(samples: Array, bits: int) -> Array:
    """Full range to full range for up to 8 bits, the upper 8 of 12 and 16."""
    return samples >> (bits - 8) if bits > 8 else samples * 255 // ((1 << bits) - 1)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png_grey(bits: int, interlaced: bool) -> None:
    grey = noise(1, bits)
    for chunks in ([], [chunk(b"tRNS", b"\0\1")]):
        data = png(grey, bits, 0, *chunks, interlaced=interlaced)
        assert np.array_equal(read_pixels(data, "L")[0], to8(grey, bits)[..., 0])
        assert np.array_equal(read_pixels(data)[0], to8(grey, bits).repeat(3, 2))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_png_colours_and_alpha(bits: int, interlaced: bool) -> None:
    for kind, channels in ((2, 3), (4, 2), (6, 4)):
        samples = noise(channels, bits)
        pixels = read_pixels(png(samples, bits, kind, interlaced=interlaced))[0]
        colours = samples[..., :1].repeat(3, 2) if channels == 2 else samples[..., :3]
        assert np.array_equal(pixels, to8(colours, bits)), kind
    key = chunk(b"tRNS", b"\0\1\0\2\0\3")  # one colour that counts as transparent
    samples = noise(3, 8)
    samples[0] = 1, 2, 3
    assert np.array_equal(read_pixels(png(samples, 8, 2, key))[0], samples)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_palettes(bits: int, interlaced: bool) -> None:
    index = noise(1, bits)
    colours = np.random.default_rng(1).integers(0, 256, (1 << bits, 3), dtype=np.uint8)
    palette = chunk(b"PLTE", colours.tobytes())
    for chunks in ([], [chunk(b"tRNS", b"\0\x80")]):
        data = png(index, bits, 3, palette, *chunks, interlaced=interlaced)
        assert np.array_equal(read_pixels(data)[0], colours[index[..., 0]])
        luma = colours[index[..., 0]] @ np.array([0.299, 0.587, 0.114])
        assert np.abs(read_pixels(data, "L")[0] - luma).max() <= 0.51


def test_of_sixteen_bits_the_upper_eight() -> None:
    grey = np.array([0, 255, 256, 0x7FFF, 0x8000, 0xFEFF, 0xFF00, 0xFFFF]).reshape(1, 8, 1)
    want = [[0, 0, 1, 127, 128, 254, 255, 255]]
    assert read_pixels(png(grey, 16, 0), "L")[0].tolist() == want
    assert read_pixels(png(grey.repeat(3, 2), 16, 2), "L")[0].tolist() == want
    deep = Image.fromarray(grey[..., 0].astype(np.uint16))
    assert np.asarray(to_mode(deep, "L")).tolist() == want


# --- TIFF ---------------------------------------------------------------------------------------


def tiff(
    samples: Array,
    bits: int,
    meaning: int,
    order: str = "<",
    tile: int = 0,
    tags: dict[int, list[int]] | None = None,
) -> bytes:
    """An uncompressed TIFF 6.0 of one strip, or of square tiles, in either byte order."""
    height, width, channels = samples.shape
    parts = [samples]
    if tile:
        filled = np.pad(samples, ((0, -height % tile), (0, -width % tile), (0, 0)))
        corners = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
        parts = [filled[y : y + tile, x : x + tile] for y, x in corners]
    if bits == 16:
        blocks = [part.astype(order + "u2").tobytes() for part in parts]
    else:
        blocks = [b"".join(packed(part, bits)) for part in parts]
    offsets = [8 + sum(map(len, blocks[:n])) for n in range(len(blocks))]
    sizes = [len(block) for block in blocks]
    fields = {256: [width], 257: [height], 258: [bits] * channels, 259: [1], 262: [meaning]}
    fields |= {277: [channels], **(tags or {})}
    place = {322: [tile], 323: [tile], 324: offsets, 325: sizes}
    fields |= place if tile else {273: offsets, 278: [height], 279: sizes}
    first = 8 + sum(sizes)
    extra, entries = first + 2 + 12 * len(fields) + 4, b""
    tail = b""
    for tag, values in sorted(fields.items()):
        raw = struct.pack(f"{order}{len(values)}H", *values)
        if len(raw) > 4:
            tail, raw = tail + raw, struct.pack(order + "I", extra + len(tail))
        entries += struct.pack(order + "HHI", tag, 3, len(values)) + raw.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, first)
    count = struct.pack(order + "H", len(fields))
    return head + b"".join(blocks) + count + entries + bytes(4) + tail


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("tile", [0, 16])
def test_tiff(order: str, tile: int) -> None:
    for bits in (8, 16):
        grey, colours = noise(1, bits), noise(3, bits)
        black = read_pixels(tiff(grey, bits, 1, order, tile), "L")[0]
        assert np.array_equal(black, to8(grey, bits)[..., 0])
        pixels = read_pixels(tiff(colours, bits, 2, order, tile))[0]
        assert np.array_equal(pixels, to8(colours, bits))
    white = read_pixels(tiff(noise(1, 8), 8, 0, order, tile), "L")[0]
    assert np.array_equal(white, 255 - noise(1, 8)[..., 0])


def test_tiff_of_other_depths() -> None:
    white = read_pixels(tiff(noise(1, 16), 16, 0), "L")[0]
    assert np.array_equal(white, 255 - (noise(1, 16)[..., 0] >> 8))
    even = noise(1, 12)[:, :10]  # twelve bits: two samples in three bytes
    assert np.array_equal(read_pixels(tiff(even, 12, 1), "L")[0], even[..., 0] >> 4)
    for bits in (1, 4):
        grey = noise(1, bits)
        assert np.array_equal(read_pixels(tiff(grey, bits, 1), "L")[0], to8(grey, bits)[..., 0])


def test_tiff_inks_and_alpha() -> None:
    inks = noise(4, 8)
    want = Image.frombytes("CMYK", (11, 13), inks.astype(np.uint8).tobytes()).convert("RGB")
    assert np.array_equal(read_pixels(tiff(inks, 8, 5))[0], want)
    straight = tiff(inks, 8, 2, tags={338: [2]})
    assert np.array_equal(read_pixels(straight)[0], inks[..., :3])
    alpha = np.maximum(inks[..., 3:], 100)
    product = np.concatenate([inks[..., :3] * alpha // 255, alpha], 2)
    pixels = read_pixels(tiff(product, 8, 2, tags={338: [1]}))[0]
    assert np.abs(pixels - inks[..., :3]).max() <= 3  # multiplied in the file, divided again


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "raw"])
def test_tiff_compressions(compression: str) -> None:
    data = written(picture(), "TIFF", compression=compression)
    assert np.array_equal(read_pixels(data)[0], picture())
    deep = np.arange(37 * 52, dtype=np.uint16).reshape(37, 52) * 34
    data = written(Image.fromarray(deep), "TIFF", compression=compression)
    assert np.array_equal(read_pixels(data, "L")[0], deep >> 8)


def test_the_first_of_several() -> None:
    others = [picture(seed=1), picture(seed=2)]
    for format, options in (("TIFF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("MPO", {})):
        data = written(picture(), format, save_all=True, append_images=others, **options)
        assert np.abs(read_pixels(data)[0].astype(int) - picture()).mean() < 7, format
    palettes = [image.quantize(64) for image in (picture(), *others)]
    data = written(palettes[0], "GIF", save_all=True, append_images=palettes[1:])
    assert np.array_equal(read_pixels(data)[0], palettes[0].convert("RGB"))


# --- WebP, GIF, BMP -----------------------------------------------------------------------------


def test_webp() -> None:
    for options in ({"quality": 70}, {"quality": 70, "method": 0}):
        data = written(picture(), "WEBP", **options)
        assert np.abs(read_pixels(data)[0].astype(int) - picture()).mean() < 8
    rgba = picture().convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize((52, 37)))
    data = written(rgba, "WEBP", lossless=True, exact=True)
    assert np.array_equal(read_pixels(data)[0], picture())


def gif(left: int, top: int, index: list[int], transparent: int | None = None) -> bytes:
    """A GIF of 3 x 2 pixels whose frame has two, side by side, at (left, top)."""
    palette = bytes([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    codes = [code for value in index for code in (4, value)] + [5]  # clearing: no table to keep
    bits = sum(code << 3 * n for n, code in enumerate(codes))
    data = bits.to_bytes(math.ceil(3 * len(codes) / 8), "little")
    control = b"" if transparent is None else b"!\xf9\4\1\0\0" + bytes([transparent, 0])
    frame = b"," + struct.pack("<HHHHB", left, top, 2, 1, 0) + b"\2" + bytes([len(data)]) + data
    return b"GIF89a\3\0\2\0\x81\0\0" + palette + control + frame + b"\0;"


def test_gif_frames_that_cover_a_part() -> None:
    blank, first, second = [10, 20, 30], [40, 50, 60], [70, 80, 90]
    pixels = read_pixels(gif(1, 0, [1, 2]))[0]
    assert pixels.tolist() == [[blank, first, second], [blank, blank, blank]]
    pixels = read_pixels(gif(0, 1, [2, 1], transparent=3))[0]
    assert pixels.tolist() == [[[1, 2, 3]] * 3, [second, first, [1, 2, 3]]]
    pixels = read_pixels(gif(0, 0, [2, 1], transparent=2))[0]
    assert pixels[0, :2].tolist() == [second, first]  # transparent, yet with its colour


def bmp(bits: int, rows: list[bytes], palette: bytes = b"", packing: int = 0, up: int = 1) -> bytes:
    """A Windows bitmap of 11 x 13 pixels; rows from the bottom, or from the top if `up` is -1."""
    data = b"".join(row + bytes(-len(row) % 4) if packing == 0 else row for row in rows)
    start = 54 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, 11, 13 * up, 1, bits, packing, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + palette + data


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bmp_palettes(bits: int) -> None:
    index = noise(1, bits)
    colours = np.random.default_rng(1).integers(0, 256, (1 << bits, 3), dtype=np.uint8)
    palette = np.pad(colours[:, ::-1], ((0, 0), (0, 1))).tobytes()
    rows = packed(index, bits)
    for data in (bmp(bits, rows[::-1], palette), bmp(bits, rows, palette, up=-1)):
        assert np.array_equal(read_pixels(data)[0], colours[index[..., 0]])


def test_bmp_colours() -> None:
    colours = noise(3, 8)
    rows = [row.astype(np.uint8)[:, ::-1].tobytes() for row in colours[::-1]]
    assert np.array_equal(read_pixels(bmp(24, rows))[0], colours)
    rows = [np.pad(row.astype(np.uint8)[:, ::-1], ((0, 0), (0, 1))).tobytes() for row in colours]
    assert np.array_equal(read_pixels(bmp(32, rows[::-1]))[0], colours)
    five = noise(3, 5)
    words = five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]
    rows = [row.astype("<u2").tobytes() for row in words[::-1]]
    assert np.array_equal(read_pixels(bmp(16, rows))[0], five * 255 // 31)


def test_bmp_run_lengths() -> None:
    index = noise(1, 8)[..., 0] // 64 * 64
    index[3] = 7
    colours = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    palette = np.pad(colours[:, ::-1], ((0, 0), (0, 1))).tobytes()
    rows = [b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in index]
    rows[3] = b"\x0b\7\0\0"  # one run, and the line's end
    data = bmp(8, [*rows[::-1], b"\0\1"], palette, packing=1)
    assert np.array_equal(read_pixels(data)[0], colours[index])
