"""Weights on disk: safetensors, written whole or not at all, read without running anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from treadle.errors import DataError
from treadle.run.tensor_file import tensor_file
from treadle.run.together import together
from treadle.shards import is_sharded, local, put, whole
from treadle.world import World, world


def save_weights(model: nn.Module, path: Path, among: World | None = None) -> Path:
    """Write the parameters and buffers of `model` to `path` (its folder is made if need be).

    A tensor that is used under several names is stored once. The file appears under its name only
    when it is complete.

    The processes of a run (`among`, by default all) call this together; rank 0 writes, all wait.

    Raises:
        DataError: in all processes, if the file cannot be written.
    """
    processes = world() if among is None else among
    state = whole_state(model, processes)
    return processes.on_main(lambda: _write(state, path))


def whole_state(model: nn.Module, among: World) -> Mapping[str, Tensor]:
    """The state dict of a model, whole in the process of rank 0 whatever it is spread among. What
    was spread lies there in the memory of the host; the other processes keep their parts.
    """
    state: dict[str, Tensor] = model.state_dict()
    gathered: dict[object, Tensor] = {}  # what has several names is one here, too
    for name, t in state.items():
        if is_sharded(t):
            full = whole(t)  # all processes, for each name
            if among.is_main:
                state[name] = gathered.setdefault(_storage(t) if t.numel() else name, full.cpu())
    return state


def _write(state: Mapping[str, Tensor], path: Path) -> Path:
    file = tensor_file("model", state)  # the same bytes for the same weights
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
        with suppress(OSError):
            beside.unlink()
    return path


def load_weights(
    model: nn.Module, path: Path, strict: bool = True, among: World | None = None
) -> None:
    """Read `path` into `model`, in place, on whatever device the model is. The processes of a run
    (`among`, by default all) call this together; of what is spread each takes its part.

    Raises:
        DataError: in all processes, if there is no such file or it is not safetensors, and where
            names or shapes differ from the model's (with `strict=False`, names may differ).
    """
    own = model.state_dict()
    processes = world() if among is None else among
    tensors = together(processes, lambda: _fitting(own, path, strict))
    for name in tensors.keys() & own.keys():
        put(own[name], tensors[name])


def _fitting(own: Mapping[str, Tensor], path: Path, strict: bool) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(
            f"there are no weights at {path}; give the name under which they were saved."
        )
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except Exception as error:  # safetensors raises an error class of its own for each damage
        raise DataError(f"{path} is not a readable safetensors file ({error}).") from error
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
    return tensors


def _storage(t: Tensor) -> tuple[int, int]:
    return local(t).data_ptr(), t.numel()


def _names_by_storage(tensors: Mapping[str, Tensor]) -> dict[tuple[int, int], set[str]]:
    names: dict[tuple[int, int], set[str]] = {}
    for name, t in tensors.items():
        names.setdefault(_storage(t), set()).add(name)
    return names
