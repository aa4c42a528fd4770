"""Look at the data as the model gets it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data.datasets import Dataset
from treadle.data.loaders import Batch, DataLoader
from treadle.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["show_batch", "show_results", "shown_images", "shown_labels"]


def shown_images(loader: DataLoader, x: torch.Tensor) -> list[NDArray[np.uint8]]:
    """The inputs `x` (B, 1 or 3, H, W) of a batch as uint8 images (H, W, 3), transforms undone."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UsageError(
            f"Inputs of shape {tuple(x.shape)} cannot be shown; expected images (B, 1 or 3, H, W)."
        )
    pixels = loader.decode(x).float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return list(pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy())


def shown_labels(dataset: Any, y: torch.Tensor) -> list[str]:
    """The targets `y` (B, ...) of a batch in words: their names in the vocab, or the numbers."""
    block = dataset.blocks[dataset.n_inp] if isinstance(dataset, Dataset) else None
    values = y.cpu().unbind() if y.ndim > 1 else y.tolist()
    return [str(value if block is None else block.decode(value)) for value in values]


def show_batch(loader: DataLoader, batch: Batch, max_n: int = 9) -> Figure:
    """A figure of the first `max_n` images of a batch of `loader`, with their labels."""
    n_inp = loader.n_inp_of(batch)
    labelled = len(batch) > n_inp
    titles = shown_labels(loader.dataset, batch[n_inp][:max_n]) if labelled else [""] * max_n
    return _show(loader, batch, titles)


def show_results(loader: DataLoader, batch: Batch, answers: torch.Tensor, max_n: int = 9) -> Figure:
    """A figure of the first `max_n` images of a batch of `loader`: above each its label, and below
    that what the model says, where it is another."""
    n_inp = loader.n_inp_of(batch)
    actual = shown_labels(loader.dataset, batch[n_inp][:max_n])
    said = shown_labels(loader.dataset, answers[:max_n])
    titles = [a if a == s else f"{a}\nnot {s}" for a, s in zip(actual, said, strict=True)]
    return _show(loader, batch, titles)


def _show(loader: DataLoader, batch: Batch, titles: list[str]) -> Figure:
    from treadle.plots import show, show_images

    images = shown_images(loader, batch[0][: len(titles)])
    return show(show_images(images, titles[: len(images)]))
