"""Samples to a batch: each element stacked to one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from treadle.data.samples import Samples
from treadle.data.targets import normalised
from treadle.errors import DataError

__all__ = ["check_shapes", "collate"]


def collate(samples: Samples) -> list[torch.Tensor]:
    """One tensor for each element of the samples, B samples long.

    Images become uint8 (B, C, H, W), masks (B, H, W), points and boxes float32, normalised.
    Arrays and tensors of no kind are stacked; bool, int and float become bool, int64 and float32 of
    shape (B,).

    Raises `DataError` for sizes that differ: it names two of the samples and their sizes.
    """
    return [
        stacked(kind, column, samples)
        for kind, column in zip(samples.kinds, samples.columns, strict=True)
    ]


def stacked(kind: str | None, column: Any, samples: Samples) -> torch.Tensor:
    """One element of all samples as a tensor."""
    first = column[0]
    if isinstance(column, np.ndarray):  # whole numbers, such as classes
        return torch.from_numpy(column)
    if isinstance(first, Image.Image):
        kind, column = "image", [np.asarray(image) for image in column]
    if kind in ("image", "mask") and not isinstance(first, torch.Tensor):
        check_shapes(column, samples)
        stack = np.stack(column)
        if kind == "mask":
            return torch.from_numpy(stack)
        stack = stack[..., None] if stack.ndim == 3 else stack
        return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous()
    if kind in ("points", "boxes"):
        column = [normalised(kind, v, f) for v, f in zip(column, samples.frames, strict=True)]
    if isinstance(first, np.ndarray | torch.Tensor):
        tensors = [torch.as_tensor(value) for value in column]
        check_shapes(tensors, samples)
        return torch.stack(tensors)
    if isinstance(first, bool | int | float | np.generic):
        numbers = torch.from_numpy(np.array(column))  # faster than of the list itself
        return numbers.float() if numbers.is_floating_point() else numbers
    raise DataError(
        f"A sample has an element of type {type(first).__name__} ({samples.names()[0]}), which "
        "cannot be stacked to a batch; expected an image, an array, a tensor or a number."
    )


def check_shapes(column: Sequence[Any], samples: Samples) -> None:
    """Raise `DataError` where an element is not of one shape in all samples."""
    shape = column[0].shape
    if all(value.shape == shape for value in column):
        return
    shapes = [tuple(value.shape) for value in column]
    other = next(i for i, shape in enumerate(shapes) if shape != shapes[0])
    names = samples.names()
    raise DataError(
        f"Samples of different shapes cannot be stacked to a batch: {names[0]} has the shape "
        f"{shapes[0]}, {names[other]} has {shapes[other]}. Bring images to one size with "
        "item_tfms=Resize(...)."
    )
