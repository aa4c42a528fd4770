"""State as tensors and JSON: nested plain containers are taken apart, and put together the same.

    {"ema": {"n": 3, "average": {"w": tensor}}}

becomes the tensors {"ema": {"average.w": tensor}} and, where the tensor stood, its name. What JSON
does not know is a dictionary with one key that begins with `$`; long lists of numbers are tensors.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treadle.errors import DataError, UsageError

Tensors = dict[str, dict[str, Tensor]]

_LONG = 32  # a list of so many numbers is smaller and quicker as a tensor


def pack(state: Mapping[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of `state` by part (its keys) and name, and all else as JSON has it.

    Tensors are not copied. Raises UsageError, naming the place, for what is neither a tensor, an
    array, None, a number, text, a path or a slice, nor a list, tuple or dict of these.

    >>> tensors, values = pack({"ema": {"n": 3, "average": {"w": torch.ones(2)}}})
    >>> values
    {'ema': {'n': 3, 'average': {'w': {'$tensor': 'average.w'}}}}
    >>> unpack(tensors, values)
    {'ema': {'n': 3, 'average': {'w': tensor([1., 1.])}}}
    """
    tensors: Tensors = {}
    values = {part: _Packing(part, tensors).packed(value, "") for part, value in state.items()}
    return tensors, values


def unpack(
    tensors: Mapping[str, Mapping[str, Tensor]],
    values: Mapping[str, Any],
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """What `pack` was given; tensors that were not on the CPU come on `device`.

    Raises DataError if it is not from `pack`.
    """
    device = torch.device(device)
    try:
        return {
            part: _unpacked(value, tensors.get(part, {}), device) for part, value in values.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"the state has not the form in which it is written ({type(error).__name__}: {error});"
            " it is of another program."
        ) from error


class _Packing:
    """One part of a state, and the tensors found in it so far."""

    def __init__(self, part: str, tensors: Tensors) -> None:
        self.part, self.tensors = part, tensors

    def packed(self, value: Any, path: str) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Tensor):
            on_cpu = value.device.type == "cpu"
            return self._named("$tensor" if on_cpu else "$on_device", value, path)
        if isinstance(value, np.ndarray):
            return self._named("$array", torch.from_numpy(np.ascontiguousarray(value)), path)
        if isinstance(value, os.PathLike):
            return {"$path": os.fspath(value)}
        if isinstance(value, slice):
            ends = [value.start, value.stop, value.step]
            return {"$slice": [self.packed(end, path) for end in ends]}
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, tuple):
            return {"$tuple": self.packed(list(value), path)}
        if isinstance(value, list):
            return self._list(value, path)
        raise UsageError(
            f"the state {self.part}.{path} is a {type(value).__name__}, which a checkpoint does "
            "not hold; give tensors, arrays, numbers, text, and lists, tuples or dicts of these."
        )

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        pairs = [(key, self.packed(v, _at(path, key))) for key, v in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(pairs)
        return {"$items": [[self.packed(key, path), v] for key, v in pairs]}

    def _list(self, value: list[Any], path: str) -> Any:
        kinds = set(map(type, value)) if len(value) >= _LONG else set()
        if kinds == {float}:
            return self._named("$floats", _column(value, "d", torch.float64), path)
        if kinds == {int}:
            with suppress(OverflowError):  # beyond 64 bits they stay as they are
                return self._named("$ints", _column(value, "q", torch.int64), path)
        return [self.packed(v, _at(path, i)) for i, v in enumerate(value)]

    def _named(self, kind: str, t: Tensor, path: str) -> dict[str, str]:
        named = self.tensors.setdefault(self.part, {})
        name = path or "value"
        while name in named:  # {"a.b": ..., "a": {"b": ...}}
            name += "'"
        named[name] = t.detach()
        return {kind: name}


def _column(value: list[Any], kind: str, dtype: torch.dtype) -> Tensor:
    """A long list as a tensor; by way of an array, a third of the time of `torch.tensor`."""
    return torch.frombuffer(array(kind, value), dtype=dtype)


def _at(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _unpacked(value: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if isinstance(value, list):
        return [_unpacked(v, tensors, device) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        kind, inner = next(iter(value.items()))
        if kind in _OF_TENSORS:
            return _OF_TENSORS[kind](tensors[inner], device)
        if kind in _OF_VALUES:
            return _OF_VALUES[kind](_unpacked(inner, tensors, device))
    return {key: _unpacked(v, tensors, device) for key, v in value.items()}


_OF_TENSORS: dict[str, Callable[[Tensor, torch.device], Any]] = {
    "$tensor": lambda t, _: t,
    "$on_device": lambda t, device: t.to(device),
    "$array": lambda t, _: t.numpy(),
    "$floats": lambda t, _: t.tolist(),
    "$ints": lambda t, _: t.tolist(),
}

_OF_VALUES: dict[str, Callable[[Any], Any]] = {
    "$path": Path,
    "$slice": lambda ends: slice(*ends),
    "$tuple": tuple,
    "$items": dict,
}
