"""Weights on disk: safetensors, written whole or not at all, read without running anything."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from treadle.errors import DataError
from treadle.run.tensor_file import tensor_file


def save_weights(model: nn.Module, path: Path) -> Path:
    """Write the parameters and buffers of `model` to `path` (its folder is made if need be).

    A tensor that is used under several names is stored once. The file appears under its name only
    when it is complete.

    Raises:
        DataError: if the file cannot be written.
    """
    file = tensor_file("model", model.state_dict())  # the same bytes for the same weights
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as opened:
            opened.writelines(file.chunks())
        beside.replace(path)
    except OSError as error:
        raise DataError(
            f"the weights could not be written to {path}: {error}; choose a folder that is "
            "writable and has room."
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return path


def load_weights(model: nn.Module, path: Path, strict: bool = True) -> None:
    """Read `path` into `model`, in place, on whatever device the model is.

    Raises:
        DataError: if there is no such file or it is not safetensors, and where names or shapes
            differ from the model's (with `strict=False`, names may differ).
    """
    if not path.is_file():
        raise DataError(
            f"there are no weights at {path}; give the name under which they were saved."
        )
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors raises an error class of its own for each damage
        raise DataError(f"{path} is not a readable safetensors file ({error}).") from error
    own = model.state_dict()
    shared = _names_by_storage(own)
    missing = [name for name in own if not shared[_storage(own[name])] & tensors.keys()]
    extra = sorted(tensors.keys() - own.keys())
    reshaped = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
        for name in sorted(tensors.keys() & own.keys())
        if tensors[name].shape != own[name].shape
    ]
    if reshaped or (strict and (missing or extra)):
        parts = {"missing": missing, "not in the model": extra, "of another shape": reshaped}
        what = "; ".join(f"{key}: {', '.join(names)}" for key, names in parts.items() if names)
        raise DataError(
            f"{path} does not fit the model ({what}); build the model it was saved from."
        )
    with torch.no_grad():
        for name in tensors.keys() & own.keys():
            own[name].copy_(tensors[name])


def _storage(t: torch.Tensor) -> tuple[int, int]:
    return t.data_ptr(), t.numel()


def _names_by_storage(tensors: dict[str, torch.Tensor]) -> dict[tuple[int, int], set[str]]:
    names: dict[tuple[int, int], set[str]] = {}
    for name, t in tensors.items():
        names.setdefault(_storage(t), set()).add(name)
    return names
