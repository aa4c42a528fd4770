"""Samples to a batch: each element stacked to one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from treadle.errors import DataError

__all__ = ["collate"]


def collate(samples: Sequence[tuple[Any, ...]], names: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """One tensor for each element of the samples, B samples long.

    PIL images become uint8 (B, C, H, W); arrays and tensors are stacked; bool, int and float
    become bool, int64 and float32 of shape (B,). `names` are the samples' names in messages.

    Raises `DataError` for sizes that differ: it names two of the samples and their sizes.
    """
    lengths = {len(sample) for sample in samples}
    if len(lengths) != 1:
        raise DataError(
            f"The samples of a batch have {sorted(lengths)} elements; expected as many."
        )
    return tuple(_stacked(column, names) for column in zip(*samples, strict=True))


def _stacked(column: Sequence[Any], names: Sequence[str]) -> torch.Tensor:
    first = column[0]
    if isinstance(first, Image.Image):
        arrays = [np.asarray(image) for image in column]
        _check_sizes(arrays, names)
        stack = np.stack(arrays)
        stack = stack[..., None] if stack.ndim == 3 else stack
        return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous()
    if isinstance(first, np.ndarray | torch.Tensor):
        tensors = [torch.as_tensor(value) for value in column]
        _check_sizes(tensors, names)
        return torch.stack(tensors)
    if isinstance(first, bool | int | float | np.generic):
        dtype = torch.float32 if isinstance(first, float | np.floating) else None
        return torch.tensor(column, dtype=dtype)
    raise DataError(
        f"A sample has an element of type {type(first).__name__} ({names[0]}), which cannot be "
        "stacked to a batch; expected an image, an array, a tensor or a number."
    )


def _check_sizes(arrays: Sequence[Any], names: Sequence[str]) -> None:
    shapes = [tuple(array.shape) for array in arrays]
    other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise DataError(
            f"Samples of different shapes cannot be stacked to a batch: {names[0]} has the shape "
            f"{shapes[0]}, {names[other]} has {shapes[other]}. Bring images to one size with "
            "item_tfms=Resize(...)."
        )
