"""Batches and predictions may be tensors, or tuples, lists and dicts of them: one walk for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def map_tensors(f: Callable[[Tensor], Any], value: Any) -> Any:
    """`value` with `f` of each tensor in it, also within tuples (named ones too), lists and dicts;
    whatever else stands there stays.

    >>> import torch
    >>> map_tensors(lambda t: t.ndim, ({"a": torch.zeros(2, 3)}, "text"))
    ({'a': 2}, 'text')
    """
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, dict):
        return {key: map_tensors(f, one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        mapped = [map_tensors(f, one) for one in value]
        return type(value)(*mapped) if hasattr(value, "_fields") else type(value)(mapped)
    return value
