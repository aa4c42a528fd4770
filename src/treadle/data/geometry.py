"""Geometric batch transforms, each a 3 × 3 matrix a sample.

Coordinates are normalised: x to the right and y down, -1 and 1 at the edges of the frame. A matrix
maps homogeneous output coordinates (x, y, 1) to input coordinates, because that is what sampling
asks for: where does this output pixel come from? So a transform that is applied first stands on
the left of the product, and several of them are one matrix and one sampling (see `sampling`).

Angles and ratios are of pixels, not of normalised units: a rotation does not shear a frame that is
not square.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data.draws import Draws
from treadle.data.sampling import Sampling, SamplingArguments, resample
from treadle.data.transforms import BatchTransform, Size, as_size
from treadle.errors import UsageError
from treadle.registry import register

__all__ = [
    "Dihedral",
    "Flip",
    "Geometric",
    "RandomResizedCropGPU",
    "ResizeBatch",
    "Rotate",
    "Warp",
    "Zoom",
]

Matrices = NDArray[np.float64]
"""Shape (B, 3, 3), or (1, 3, 3) where all samples have the same."""


class Geometric(BatchTransform):
    """A batch transform that moves pixels.

    A subclass says by `drawn` where the pixels come from in training. `size` is (height, width) of
    the output, or None for that of the input. All take `mode`, `pad_mode` and `align_corners`, with
    the meanings of `torch.nn.functional.grid_sample`.
    """

    size: tuple[int, int] | None = None

    def __init__(self, **sampling: Unpack[SamplingArguments]) -> None:
        self.sampling = Sampling(**sampling)

    @abstractmethod
    def drawn(self, draws: Draws, size: tuple[int, int]) -> Matrices:
        """The training matrices (B, 3, 3) for a frame of `size` (height, width)."""

    def fixed(self, size: tuple[int, int]) -> Matrices:
        """The validation matrix (1, 3, 3): the whole frame unless a subclass says otherwise."""
        return np.eye(3)[None]

    def matrices(self, draws: Draws | None, size: tuple[int, int]) -> Matrices:
        """`drawn` in training, `fixed` in validation (`draws` is None)."""
        return self.fixed(size) if draws is None else self.drawn(draws, size)

    def __call__(self, x: torch.Tensor, draws: Draws | None = None) -> torch.Tensor:
        size = (x.shape[-2], x.shape[-1])
        return resample(x, self.matrices(draws, size), self.size or size, self.sampling)


@register
class Flip(Geometric):
    """Mirror left and right with probability `p`."""

    def __init__(self, p: float = 0.5, **sampling: Unpack[SamplingArguments]) -> None:
        super().__init__(**sampling)
        self.p = p

    def drawn(self, draws: Draws, size: tuple[int, int]) -> Matrices:
        sign = np.where(draws.uniform()[:, 0] < self.p, -1.0, 1.0)
        return _affine(sign, 0, 0, 0, 1, 0)


@register
class Dihedral(Geometric):
    """With probability `p`, one of the eight symmetries of the square, the identity included."""

    def __init__(self, p: float = 0.5, **sampling: Unpack[SamplingArguments]) -> None:
        super().__init__(**sampling)
        self.p = p

    def drawn(self, draws: Draws, size: tuple[int, int]) -> Matrices:
        chance, which = draws.uniform(2).T
        symmetry = np.where(chance < self.p, (which * 8).astype(np.int64), 0)
        across = 1.0 - 2.0 * (symmetry & 1)
        down = 1.0 - (symmetry & 2)
        turned = symmetry >= 4
        straight = np.where(turned, 0.0, 1.0)
        m = _affine(across * straight, across * turned, 0, down * turned, down * straight, 0)
        return _in_pixels(m, size)


@register
class Rotate(Geometric):
    """With probability `p`, turn about the centre by up to `max_deg` degrees either way."""

    def __init__(
        self, max_deg: float = 10.0, p: float = 0.5, **sampling: Unpack[SamplingArguments]
    ) -> None:
        super().__init__(**sampling)
        self.max_deg, self.p = max_deg, p

    def drawn(self, draws: Draws, size: tuple[int, int]) -> Matrices:
        chance, which = draws.uniform(2).T
        angle = np.where(chance < self.p, (2 * which - 1) * math.radians(self.max_deg), 0.0)
        cos, sin = np.cos(angle), np.sin(angle)
        return _in_pixels(_affine(cos, sin, 0, -sin, cos, 0), size)


@register
class Zoom(Geometric):
    """With probability `p`, zoom by `min_zoom` to `max_zoom` about a random point."""

    def __init__(
        self,
        min_zoom: float = 1.0,
        max_zoom: float = 1.1,
        p: float = 0.5,
        **sampling: Unpack[SamplingArguments],
    ) -> None:
        super().__init__(**sampling)
        if not 0 < min_zoom <= max_zoom:
            raise UsageError(
                f"Zoom got min_zoom={min_zoom!r}, max_zoom={max_zoom!r}; expected "
                "0 < min_zoom <= max_zoom."
            )
        self.min_zoom, self.max_zoom, self.p = min_zoom, max_zoom, p

    def drawn(self, draws: Draws, size: tuple[int, int]) -> Matrices:
        chance, which, x, y = draws.uniform(4).T
        zoom = np.where(chance < self.p, self.min_zoom + which * (self.max_zoom - self.min_zoom), 1)
        scale = 1 / zoom
        return _affine(scale, 0, (1 - scale) * (2 * x - 1), 0, scale, (1 - scale) * (2 * y - 1))


@register
class Warp(Geometric):
    """A change of the camera's place: the frame's sides grow and shrink by up to `magnitude`.

    Two tilts, about the vertical and the horizontal axis, are each drawn with probability `p`. A
    tilt of t lengthens one side of the frame by the factor 1 + t and shortens the opposite one by
    1 - t; the four corners so moved determine the homography.
    """

    def __init__(
        self, magnitude: float = 0.2, p: float = 0.5, **sampling: Unpack[SamplingArguments]
    ) -> None:
        super().__init__(**sampling)
        if not 0 <= magnitude < 0.5:  # beyond, the horizon comes into the picture
            raise UsageError(f"Warp got magnitude={magnitude!r}; expected 0 <= magnitude < 0.5.")
        self.magnitude, self.p = magnitude, p

    def drawn(self, draws: Draws, size: tuple[int, int]) -> Matrices:
        numbers = draws.uniform(4)
        tilts = (2 * numbers[:, 2:] - 1) * self.magnitude
        x, y = np.where(numbers[:, :2] < self.p, tilts, 0.0).T
        moved = [(-1 - y, -1 - x), (-1 + y, 1 + x), (1 + y, -1 + x), (1 - y, 1 - x)]
        return _from_corners(np.stack([np.stack(corner, -1) for corner in moved], axis=1))


@register
class ResizeBatch(Geometric):
    """The whole frame at `size`, in training and in validation."""

    def __init__(self, size: Size, **sampling: Unpack[SamplingArguments]) -> None:
        super().__init__(**sampling)
        self.size = as_size(size)

    def drawn(self, draws: Draws, size: tuple[int, int]) -> Matrices:
        return self.fixed(size)


@register
class RandomResizedCropGPU(Geometric):
    """A random part of the frame, resized to `size`; each sample has its own.

    The part covers `min_scale` to `max_scale` of the area and has an aspect ratio (width over
    height) drawn log-uniformly from `ratio`. In validation it is the largest centred part with an
    aspect ratio in `ratio`: all of a square frame. As GoogLeNet's crops (Szegedy et al. 2014,
    https://arxiv.org/abs/1409.4842).
    """

    _ATTEMPTS = 10

    def __init__(
        self,
        size: Size,
        min_scale: float = 0.08,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        max_scale: float = 1.0,
        **sampling: Unpack[SamplingArguments],
    ) -> None:
        super().__init__(**sampling)
        if not 0 < min_scale <= max_scale <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise UsageError(
                f"RandomResizedCropGPU got min_scale={min_scale!r}, max_scale={max_scale!r}, "
                f"ratio={ratio!r}; expected 0 < min_scale <= max_scale <= 1 and ratio increasing."
            )
        self.size = as_size(size)
        self.min_scale, self.max_scale, self.ratio = min_scale, max_scale, ratio

    def drawn(self, draws: Draws, size: tuple[int, int]) -> Matrices:
        numbers = draws.uniform(2 * self._ATTEMPTS + 2)
        area = self.min_scale + numbers[:, : self._ATTEMPTS] * (self.max_scale - self.min_scale)
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = np.exp(low + numbers[:, self._ATTEMPTS : -2] * (high - low)) * size[0] / size[1]
        across, down = np.sqrt(area * ratio), np.sqrt(area / ratio)  # parts of the frame's sides
        fits = (across <= 1) & (down <= 1)
        first = fits.argmax(axis=1)[:, None]
        found = fits.any(axis=1)
        whole = self.fixed(size)[0]
        across = np.where(found, np.take_along_axis(across, first, 1)[:, 0], whole[0, 0])
        down = np.where(found, np.take_along_axis(down, first, 1)[:, 0], whole[1, 1])
        x, y = (2 * numbers[:, -2:] - 1).T
        return _affine(across, 0, (1 - across) * x, 0, down, (1 - down) * y)

    def fixed(self, size: tuple[int, int]) -> Matrices:
        ratio = size[1] / size[0]
        nearest = min(max(ratio, self.ratio[0]), self.ratio[1])
        return _affine(np.array([min(nearest / ratio, 1)]), 0, 0, 0, min(ratio / nearest, 1), 0)


Entry = NDArray[np.floating[Any]] | float


def _affine(
    a: NDArray[np.floating[Any]], b: Entry, c: Entry, d: Entry, e: Entry, f: Entry
) -> Matrices:
    """The matrices [[a, b, c], [d, e, f], [0, 0, 1]], one for each entry of `a`."""
    m = np.zeros((len(a), 3, 3))
    m[:, 0, 0], m[:, 0, 1], m[:, 0, 2] = a, b, c
    m[:, 1, 0], m[:, 1, 1], m[:, 1, 2] = d, e, f
    m[:, 2, 2] = 1
    return m


def _in_pixels(m: Matrices, size: tuple[int, int]) -> Matrices:
    """`m`, meant for a square frame, for one of `size`: measured in pixels it does the same."""
    height, width = size
    m[:, 0, 1] *= height / width
    m[:, 1, 0] *= width / height
    return m


def _from_corners(moved: NDArray[np.float64]) -> Matrices:
    """The homographies that take the corners (-1, -1), (-1, 1), (1, -1), (1, 1) to `moved`.

    `moved` has the shape (B, 4, 2). Each corner gives two of the eight linear equations for the
    entries of the matrix, its last one being 1 (Hartley and Zisserman 2004, 4.1).
    """
    equations = np.zeros((len(moved), 8, 8))
    for corner, (x, y) in enumerate([(-1, -1), (-1, 1), (1, -1), (1, 1)]):
        u, v = moved[:, corner, 0], moved[:, corner, 1]
        equations[:, 2 * corner, :3] = equations[:, 2 * corner + 1, 3:6] = (x, y, 1)
        equations[:, 2 * corner, 6], equations[:, 2 * corner, 7] = -u * x, -u * y
        equations[:, 2 * corner + 1, 6], equations[:, 2 * corner + 1, 7] = -v * x, -v * y
    entries = np.linalg.solve(equations, moved.reshape(-1, 8, 1))[..., 0]
    return np.concatenate([entries, np.ones((len(moved), 1))], axis=1).reshape(-1, 3, 3)
