"""A thing of the data pipeline in a few words, for messages and summaries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from treadle.errors import printable

__all__ = ["describe", "name_of", "shortened"]


def describe(value: Any) -> str:
    """Type, shape, dtype and range of `value`, as far as it has them.

    >>> describe(torch.tensor([[1, 2]]))
    'Tensor (1, 2) int64 in 1..2 on cpu'
    """
    if isinstance(value, Image.Image):
        kind = f"Image {value.mode} {value.height}x{value.width} (height x width) uint8"
        return kind + _range(np.asarray(value))
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        numbers = value.detach().float().cpu().numpy() if value.is_floating_point() else value.cpu()
        return f"Tensor {tuple(value.shape)} {dtype}{_range(np.asarray(numbers))} on {value.device}"
    if isinstance(value, np.ndarray):
        return f"ndarray {value.shape} {value.dtype}{_range(value)}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}: {shortened(value)}"
    return f"{type(value).__name__} {shortened(value)}"


def name_of(function: Callable[..., Any]) -> str:
    """A function's name, or the repr of an object that is called like one."""
    name = getattr(function, "__name__", None)
    return str(name) if name is not None else repr(function)


def shortened(value: Any, most: int = 10) -> str:
    """`value` as text on one line: of a long list, the first `most` members and the last; of a long
    text the first 200 characters.

    >>> shortened(["a", "b", "c", "d"], most=2)
    'a, b, ... d'
    """
    if isinstance(value, list | tuple | set | frozenset):
        members = list(value)
        shown = [*map(_on_one_line, members[:most])]
        if len(members) > most:
            shown.append(f"... {_on_one_line(members[-1])}")
        return ", ".join(shown) or "(none)"
    return _on_one_line(value)


def _on_one_line(value: Any) -> str:
    text = printable(" ".join(str(value).split()))
    return text if len(text) <= 200 else f"{text[:200]}..."


def _range(array: np.ndarray[Any, Any]) -> str:
    if array.size == 0 or array.dtype.kind not in "iufb":
        return ""
    if array.dtype.kind == "f":
        array = array[~np.isnan(array)]  # NaN: places of which nothing is left
        if array.size == 0:
            return ", all NaN"
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        return f" in {float(low):.3g}..{float(high):.3g}"
    return f" in {int(low)}..{int(high)}"
