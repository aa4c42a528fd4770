"""Scale channels to mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from treadle.data.draws import Draws
from treadle.data.transforms import BatchTransform
from treadle.errors import UsageError
from treadle.registry import register

__all__ = ["Normalize", "imagenet_stats"]

imagenet_stats = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
"""Mean and standard deviation of ImageNet's red, green and blue, of values in [0, 1]."""


@register
class Normalize(BatchTransform):
    """(x - mean) / std by channel; `decode` is the inverse. The last of the batch transforms.

    >>> norm = Normalize.from_stats(*imagenet_stats)
    >>> x = torch.rand(2, 3, 4, 4)
    >>> torch.allclose(norm.decode(norm(x)), x, atol=1e-6)
    True
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = [float(m) for m in mean], [float(s) for s in std]
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise UsageError(
                f"Normalize got mean={mean!r}, std={std!r}; expected one mean and one positive "
                "standard deviation for each channel."
            )

    @classmethod
    def from_stats(cls, mean: Sequence[float], std: Sequence[float]) -> Normalize:
        """`Normalize(mean, std)`: one number a channel, of values in [0, 1]."""
        return cls(mean, std)

    def __call__(self, x: torch.Tensor, draws: Draws | None = None) -> torch.Tensor:
        mean, std = self._like(x)
        return (x - mean).div_(std)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = self._like(x)
        return (x * std).add_(mean)

    def _like(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        channels = x.shape[1]
        if channels != len(self.mean):
            raise UsageError(
                f"Normalize has statistics of {len(self.mean)} channels, and got a batch of shape "
                f"{tuple(x.shape)} with {channels}. Give as many, or read the images in the mode "
                "that has them: ImageBlock(mode=...)."
            )
        shape = (channels, 1, 1)
        mean, std = (
            torch.tensor(stats, dtype=x.dtype, device=x.device).reshape(shape)
            for stats in (self.mean, self.std)
        )
        return mean, std
