"""Masks, points and boxes go where the image goes.

A sample's elements have kinds: "image", "mask", "points", "boxes". As single items, images and
masks are uint8 arrays (H, W) or (H, W, 3), points and boxes float32 in pixels: (N, 2) of (x, y)
and (N, 4) of (left, top, right, bottom), measured from the left and the top edge of the frame, so
that the middle of the first pixel is (0.5, 0.5). In a batch they are normalised: -1 and 1 are the
edges of the frame, whatever `align_corners` says about the reading of pixels.

What is not there is NaN: a point that nobody has marked, a box of which nothing is left. A point
that leaves the frame keeps its coordinates, as in fastai; they are just outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from treadle.data.decode import Frame
from treadle.data.sampling import Sampling, resample
from treadle.data.transforms import PadMode
from treadle.errors import UsageError

__all__ = ["cut", "in_pixels", "moved", "normalised", "resized", "windowed"]

Window = tuple[int, int, int, int]
"""(top, left, height, width), in pixels; it may stick out of the picture."""

Array = NDArray[Any]
Coordinates = TypeVar("Coordinates", Array, torch.Tensor)


def moved(
    kind: str,
    value: torch.Tensor,
    matrices: NDArray[np.float64],
    before: Frame,
    after: Frame,
    how: Sampling,
) -> torch.Tensor:
    """A batch of a kind through the homographies that its images go through.

    `matrices` (B, 3, 3), or (1, 3, 3) for all alike, map normalised output to input coordinates
    (see `geometry`); `before` and `after` are the frames' sizes, `how` is how the images are read.
    Device and dtype stay.

    - "image" (B, C, H, W): `resample`.
    - "mask" (B, H, W) or (B, 1, H, W) of any dtype: each pixel is a copy of the nearest one of the
      input, whatever `how.mode` is; outside the frame by `how.pad_mode`.
    - "points" (B, N, 2), normalised: through the inverse; NaN beyond the horizon of a homography.
    - "boxes" (B, N, 4), normalised: the box around the four moved corners, cut to the frame; NaN if
      nothing is left of it or a corner is beyond the horizon.

    >>> mirror = np.diag([-1.0, 1.0, 1.0])[None]
    >>> moved("points", torch.tensor([[[0.5, 0.25]]]), mirror, (4, 6), (4, 6), Sampling()).tolist()
    [[[-0.5, 0.25]]]
    """
    if kind == "image":
        return resample(value, matrices, after, how)
    if kind == "mask":
        return _moved_mask(value, matrices, after, how)
    _check(kind)
    forward = _to_output(matrices, before, after, how.align_corners)
    return _each_corner(kind, value, lambda points: _through(points, forward))


def resized(kind: str, value: Array, frame: Frame, size: Frame) -> Array:
    """An item at `size`: an image bilinear and antialiased, a mask by the nearest pixels.

    Points and boxes are in pixels of `frame`, and then in pixels of `size`. What has the size
    already comes back as it is.

    >>> resized("points", np.array([[1.0, 2.0]], np.float32), frame=(4, 4), size=(8, 16)).tolist()
    [[4.0, 4.0]]
    """
    if kind in ("points", "boxes"):
        scaled: Array = value * _sides(kind, (size[0] / frame[0], size[1] / frame[1]), value)
        return scaled
    _check(kind, "image", "mask")
    height, width = value.shape[:2]
    if (height, width) == size:
        return value
    if kind == "image":
        picture = Image.fromarray(value).resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(picture)
    rows, columns = (
        (2 * np.arange(to) + 1) * side // (2 * to)  # under the middles of the new pixels
        for side, to in zip((height, width), size, strict=True)
    )
    picked: Array = value[rows[:, None], columns]
    return picked


def windowed(
    kind: str, value: Array, window: Window, pad: PadMode | str = PadMode.Reflection
) -> Array:
    """What a window (top, left, height, width) shows of an item; it may stick out of the picture.

    There, images and masks are continued by `pad`: zeros, the border's pixels, or the picture
    mirrored at its outermost pixels. A window inside the picture gives a view of it, no copy.
    Points and boxes, in pixels, are measured from the window's corner; boxes are cut to the window,
    and are NaN if nothing is left of them.

    >>> windowed("mask", np.array([[1, 2], [3, 4]], np.uint8), (0, 1, 2, 2), "zeros").tolist()
    [[2, 0], [4, 0]]
    """
    top, left, height, width = window
    if kind in ("points", "boxes"):
        shifted: Array = value - _sides(kind, (top, left), value)
        return shifted if kind == "points" else cut(shifted, (0, 0, height, width))
    _check(kind, "image", "mask")
    high, wide = value.shape[:2]
    shown: Array
    if top >= 0 and left >= 0 and top + height <= high and left + width <= wide:
        shown = value[top : top + height, left : left + width]
        return shown
    rows, columns = np.arange(top, top + height), np.arange(left, left + width)
    inside = _inside(rows, high)[:, None] & _inside(columns, wide)
    shown = value[_within(rows, high, pad)[:, None], _within(columns, wide, pad)]
    if PadMode(pad) is PadMode.Zeros:
        shown[~inside] = 0
    return shown


def normalised(kind: str, value: Coordinates, size: Frame) -> Coordinates:
    """Points and boxes in pixels of a frame of `size`, as they are in a batch: -1 to 1 within.

    Images and masks come back as they are. Arrays and tensors, of any leading dimensions.

    >>> normalised("points", np.array([[0.0, 3.0]]), (4, 6)).tolist()
    [[-1.0, 0.5]]
    """
    if kind in ("image", "mask"):
        return value
    return value * (2 / _sides(kind, size, value)) - 1


def in_pixels(kind: str, value: Coordinates, size: Frame) -> Coordinates:
    """The inverse of `normalised`: points and boxes in pixels of a frame of `size`."""
    if kind in ("image", "mask"):
        return value
    return (value + 1) * (_sides(kind, size, value) / 2)


def cut(boxes: Coordinates, frame: tuple[float, float, float, float]) -> Coordinates:
    """Boxes (..., 4) cut to `frame` (left, top, right, bottom); NaN where nothing is left."""
    left, top, right, bottom = frame
    xp: Any = torch if isinstance(boxes, torch.Tensor) else np
    x, y = xp.clip(boxes[..., 0::2], left, right), xp.clip(boxes[..., 1::2], top, bottom)
    inside = xp.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)
    empty = (x[..., 0] >= x[..., 1]) | (y[..., 0] >= y[..., 1])
    inside[empty] = float("nan")
    return inside  # type: ignore[no-any-return]


def _check(kind: str, *known: str) -> None:
    known = known or ("points", "boxes")
    if kind not in known:
        raise UsageError(f"kind={kind!r} is not one of {', '.join(map(repr, known))}.")


def _sides(kind: str, size: tuple[float, float], like: Coordinates) -> Coordinates:
    """(x, y) of `size` (y, x) for each point of a kind, as what `like` is."""
    _check(kind)
    sides = [size[1], size[0]] * (2 if kind == "boxes" else 1)
    if isinstance(like, torch.Tensor):
        return torch.tensor(sides, dtype=like.dtype, device=like.device)
    return np.array(sides, dtype=like.dtype)


def _inside(index: NDArray[np.intp], side: int) -> NDArray[np.bool_]:
    return (index >= 0) & (index < side)


def _within(index: NDArray[np.intp], side: int, pad: PadMode | str) -> NDArray[np.intp]:
    """The pixel shown at each `index`, which may lie outside 0 to `side` - 1."""
    if PadMode(pad) is PadMode.Reflection and side > 1:
        index = np.abs(index) % (2 * side - 2)
        return np.minimum(index, 2 * side - 2 - index)
    return index.clip(0, side - 1)


def _to_output(
    matrices: NDArray[np.float64], before: Frame, after: Frame, align_corners: bool
) -> Array:
    """The homographies from input to output, both with -1 and 1 at the edges of the frame."""
    inverse: Array = np.linalg.inv(matrices)
    if not align_corners:
        return inverse
    # the matrices have 1 in the middle of the last pixel; a frame of one pixel has no such scale
    to_middles, from_middles = (
        np.diag([1.0 if side == 1 else side / (side - 1) for side in frame[::-1]] + [1.0])
        for frame in (before, after)
    )
    both: Array = np.linalg.inv(from_middles) @ inverse @ to_middles
    return both


def _through(points: torch.Tensor, forward: Array) -> torch.Tensor:
    """Points (B, N, 2) through homographies (B, 3, 3); NaN where the depth is not positive.

    Sums of products, not a matrix product: that might run in TF32.
    """
    working = torch.float64 if points.dtype == torch.float64 else torch.float32
    m = torch.from_numpy(forward).to(points.device, working)[:, None]
    x, y = points.to(working).unbind(-1)
    u, v, depth = (m[..., row, 0] * x + m[..., row, 1] * y + m[..., row, 2] for row in range(3))
    depth = torch.where(depth > 0, depth, torch.nan)
    return torch.stack([u / depth, v / depth], -1).to(points.dtype)


def _each_corner(
    kind: str, value: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Points (B, N, 2) changed; or boxes (B, N, 4): the box around their changed corners, cut."""
    if kind == "points":
        return change(value)
    corners = value[..., [0, 1, 2, 1, 0, 3, 2, 3]].unflatten(-1, (4, 2))
    changed = change(corners.flatten(1, 2)).unflatten(1, corners.shape[1:3])
    return cut(torch.cat([changed.amin(-2), changed.amax(-2)], -1), (-1, -1, 1, 1))


def _moved_mask(
    mask: torch.Tensor, matrices: NDArray[np.float64], size: Frame, how: Sampling
) -> torch.Tensor:
    """Pixels of `mask` (B, [1,] H, W) by their index, so that numbers of any size stay exact."""
    before = (mask.shape[-2], mask.shape[-1])
    if size == before and np.array_equal(matrices, np.broadcast_to(np.eye(3), matrices.shape)):
        return mask
    matrices = np.broadcast_to(matrices, (len(mask), 3, 3)).astype(np.float32)
    m = torch.from_numpy(matrices).to(mask.device)[..., None, None]
    y, x = (_middles(side, how.align_corners, mask.device) for side in size)
    u, v, depth = (
        m[:, row, 0] * x + (m[:, row, 1] * y[:, None] + m[:, row, 2]) for row in range(3)
    )
    column, across = _read_at(u / depth, before[1], how)
    row, down = _read_at(v / depth, before[0], how)
    flat = mask.reshape(len(mask), -1)
    read = flat.gather(1, (row * before[1] + column).flatten(1)).reshape(across.shape)
    if how.pad_mode == "zeros":
        read = read.masked_fill(~(across & down), 0)
    return read.reshape(*mask.shape[:-2], *size)


def _middles(side: int, align_corners: bool, device: torch.device) -> torch.Tensor:
    """The normalised coordinates of the middles of `side` pixels."""
    edge = 0.0 if side == 1 else 1.0 if align_corners else 1 - 1 / side
    return torch.linspace(-edge, edge, side, device=device)


def _read_at(place: torch.Tensor, side: int, how: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """The pixel, of `side` in a row, that is read at a normalised place; and is it a true one?"""
    if how.align_corners:
        place, first, span = (place + 1) * ((side - 1) / 2), 0.0, side - 1
    else:
        place, first, span = ((place + 1) * side - 1) / 2, -0.5, side
    place = place.nan_to_num(0.0, posinf=0.0, neginf=0.0)  # on the horizon: any pixel will do
    if how.pad_mode == "reflection" and span:
        turned = (place - first).abs() % (2 * span)
        place = torch.minimum(turned, 2 * span - turned) + first
    index = place.round().long()  # halves to the even pixel, as grid_sample
    inside = (index >= 0) & (index < side)
    return index.clamp(0, side - 1), inside
