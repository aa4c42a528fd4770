"""Batch transforms of brightness and contrast.

They work on log-odds: a value v in [0, 1] becomes logit(v) = log(v / (1 - v)), is changed, and
goes back through the sigmoid. So nothing is clipped, and no change leaves [0, 1]. Each is a slope
and an offset a sample, so several are one pass over the pixels.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data.draws import Draws
from treadle.data.transforms import BatchTransform
from treadle.errors import UsageError
from treadle.registry import register

__all__ = ["Brightness", "Contrast", "Lighting", "relight"]

Line = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Slope and offset of each sample, float64 of shape (B,)."""

_EPS = 1e-7  # black and white have infinite log-odds


class Lighting(BatchTransform):
    """A batch transform of float images in [0, 1] that is a line in log-odds."""

    @abstractmethod
    def drawn(self, draws: Draws) -> Line:
        """The training slopes and offsets, (B,) each."""

    def __call__(self, x: torch.Tensor, draws: Draws | None = None) -> torch.Tensor:
        return x if draws is None else relight(x, *self.drawn(draws))


@register
class Brightness(Lighting):
    """With probability `p`, grey (0.5) becomes (1 ± max_lighting) / 2, and the rest follows."""

    def __init__(self, max_lighting: float = 0.2, p: float = 0.75) -> None:
        self.max_lighting, self.p = _checked(max_lighting), p

    def drawn(self, draws: Draws) -> Line:
        chance, which = draws.uniform(2).T
        grey = 0.5 * (1 + (2 * which - 1) * self.max_lighting)
        offset = np.where(chance < self.p, np.log(grey / (1 - grey)), 0.0)
        return np.ones_like(offset), offset


@register
class Contrast(Lighting):
    """With probability `p`, log-odds are scaled by 1 - max_lighting to its reciprocal."""

    def __init__(self, max_lighting: float = 0.2, p: float = 0.75) -> None:
        self.max_lighting, self.p = _checked(max_lighting), p

    def drawn(self, draws: Draws) -> Line:
        chance, which = draws.uniform(2).T
        most = -math.log(1 - self.max_lighting)
        slope = np.exp(np.where(chance < self.p, (2 * which - 1) * most, 0.0))
        return slope, np.zeros_like(slope)


def relight(
    x: torch.Tensor, slope: NDArray[np.float64], offset: NDArray[np.float64]
) -> torch.Tensor:
    """sigmoid(slope × logit(x) + offset); `x` (B, C, H, W) in [0, 1], slope and offset (B,)."""
    a, b = (
        torch.from_numpy(line.astype(np.float32)).to(x.device, x.dtype)[:, None, None, None]
        for line in (slope, offset)
    )
    return torch.logit(x, _EPS).mul_(a).add_(b).sigmoid_()


def _checked(max_lighting: float) -> float:
    if not 0 <= max_lighting < 1:
        raise UsageError(f"max_lighting={max_lighting!r} is not in 0 <= max_lighting < 1.")
    return max_lighting
