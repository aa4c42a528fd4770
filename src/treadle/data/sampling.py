"""Move the pixels of a batch by homographies, in one sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from treadle.errors import UsageError

__all__ = ["Sampling", "SamplingArguments", "halvings_of", "resample"]

_MODES = ("bilinear", "nearest", "bicubic")
_PAD_MODES = ("reflection", "border", "zeros")


class SamplingArguments(TypedDict, total=False):
    """The arguments of `Sampling`, which every geometric transform takes."""

    mode: str
    pad_mode: str
    align_corners: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How pixels between the pixels and outside the frame are read; as in `F.grid_sample`."""

    mode: str = "bilinear"
    pad_mode: str = "reflection"
    align_corners: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mode", self.mode, _MODES),
            ("pad_mode", self.pad_mode, _PAD_MODES),
        ):
            if value not in known:
                raise UsageError(f"{name}={value!r} is not one of {', '.join(map(repr, known))}.")


def resample(
    x: torch.Tensor, matrices: NDArray[np.float64], size: tuple[int, int], how: Sampling
) -> torch.Tensor:
    """Images `x` (B, C, H, W) read through `matrices`; the result is (B, C, *size).

    `matrices` (B, 3, 3), or (1, 3, 3) for all alike, map normalised output coordinates to input
    coordinates. A sample that is shrunk by 2 or more is averaged over squares of 2, 4, ... pixels
    first, so that no pixel of the input is passed over; by how much depends on that sample alone.
    """
    same_size = size == tuple(x.shape[-2:])
    if same_size and np.array_equal(matrices, np.broadcast_to(np.eye(3), matrices.shape)):
        return x
    matrices = np.broadcast_to(matrices, (len(x), 3, 3))
    halvings = halvings_of(matrices, (x.shape[-2], x.shape[-1]), size, how)
    if not halvings.any():
        return _sample(x, matrices, size, how)
    out = x.new_empty((*x.shape[:2], *size))
    for count in np.unique(halvings):
        chosen = np.flatnonzero(halvings == count)
        index = torch.from_numpy(chosen).to(x.device)
        out[index] = _sample(x[index], matrices[chosen], size, how, int(count))
    return out


def halvings_of(
    matrices: NDArray[np.float64], before: tuple[int, int], after: tuple[int, int], how: Sampling
) -> NDArray[np.int64]:
    """How often each sample can be halved before it is smaller than what is asked of it."""
    if how.mode == "nearest":
        return np.zeros(len(matrices), np.int64)
    linear = matrices[:, :2, :2]
    area = np.abs(linear[:, 0, 0] * linear[:, 1, 1] - linear[:, 0, 1] * linear[:, 1, 0])
    shrink = np.sqrt(area * before[0] * before[1] / (after[0] * after[1]))
    return np.floor(np.log2(np.maximum(shrink, 1.0)) + 1e-6).astype(np.int64)


def _sample(
    x: torch.Tensor,
    matrices: NDArray[np.float64],
    size: tuple[int, int],
    how: Sampling,
    halvings: int = 0,
) -> torch.Tensor:
    """`x`, averaged over squares of 2**halvings pixels, read through `matrices`."""
    read_corners = how.align_corners
    if halvings:
        height, width = x.shape[-2:]
        if how.align_corners:
            # averaging moves the centres of the corner pixels but not the edges of the frame:
            # from here on 1 is the edge
            matrices = np.diag([(width - 1) / width, (height - 1) / height, 1.0]) @ matrices
            read_corners = False
        sides = [max(round(side / 2**halvings), 1) for side in (height, width)]
        x = F.interpolate(x, sides, mode="area")
    grid = _grid(matrices, size, how.align_corners, x)
    return F.grid_sample(x, grid, how.mode, how.pad_mode, read_corners)


def _grid(
    matrices: NDArray[np.float64], size: tuple[int, int], align_corners: bool, like: torch.Tensor
) -> torch.Tensor:
    """Where each output pixel is read: (B, H, W, 2).

    Sums of products, not a matrix product: that might run in TF32, whose ten bits are too few for
    a place in an image.
    """
    m = torch.from_numpy(matrices.astype(np.float32)).to(like.device)[..., None, None]
    y, x = (_centres(side, align_corners).to(like.device) for side in size)
    y = y[:, None]
    place = [m[:, row, 0] * x + (m[:, row, 1] * y + m[:, row, 2]) for row in (0, 1)]
    if np.any(matrices[:, 2] != (0.0, 0.0, 1.0)):
        depth = m[:, 2, 0] * x + (m[:, 2, 1] * y + m[:, 2, 2])
        place = [coordinate / depth for coordinate in place]
    return torch.stack(place, dim=-1).to(like.dtype)


def _centres(side: int, align_corners: bool) -> torch.Tensor:
    """The normalised coordinates of the centres of `side` pixels."""
    if side == 1:
        return torch.zeros(1)
    edge = 1.0 if align_corners else 1 - 1 / side
    return torch.linspace(-edge, edge, side)
