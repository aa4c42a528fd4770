"""An encoder as a file: what a language model has learnt, for a classifier to begin with. It is
safetensors, with the vocabulary in its metadata; nothing in it is run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from treadle.errors import DataError
from treadle.run.durable import room_for, write_file

__all__ = ["load_encoder", "save_encoder"]

_EMBEDDING = "encoder.weight"


def save_encoder(encoder: nn.Module, vocab: Sequence[str], path: Path) -> Path:
    """Write the parameters and buffers of `encoder`, and the tokens of which its embedding holds
    the rows, to `path`; the file is there whole or not at all.

    Raises:
        DataError: if it cannot be written.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in _tensors(encoder).items()}
    data = save(tensors, {"vocab": json.dumps(list(vocab))})
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with room_for(path, len(data)):
        try:
            write_file(beside, [data])
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    return path


def load_encoder(encoder: nn.Module, vocab: Sequence[str], path: Path) -> list[str]:
    """Read what `save_encoder` wrote into `encoder`, in place.

    The rows of the embedding are those of the same tokens. A token of `vocab` that the file does
    not have gets the mean of all rows; these tokens are returned.

    Raises:
        DataError: if there is no such file, it is damaged or no encoder, or the encoder was made
            with other numbers.
    """
    tensors, old = _read(path)
    own = _tensors(encoder)
    new: list[str] = []
    if list(vocab) != old:
        tensors[_EMBEDDING], new = _moved(tensors[_EMBEDDING], old, vocab)
    differing = [
        f"{name} {_shape(tensors, name)} for {_shape(own, name)}"
        for name in sorted({*own, *tensors})
        if _shape(own, name) != _shape(tensors, name)
    ]
    if differing:
        raise DataError(
            f"{path} does not fit the encoder ({'; '.join(differing[:3])}"
            f"{', ...' * (len(differing) > 3)}); make it by the arch and the config of the one "
            "that was saved."
        )
    with torch.no_grad():
        for name, t in own.items():
            t.copy_(tensors[name])
    return new


def _tensors(encoder: nn.Module) -> dict[str, Tensor]:
    """Each once, under the first of its names."""
    return {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}


def _read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    if not path.is_file():
        raise DataError(
            f"there is no encoder at {path}; give the name that save_encoder was given."
        )
    try:
        with safe_open(path, "pt") as file:
            vocab: Any = json.loads((file.metadata() or {}).get("vocab", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises an error class of its own for each damage
        raise DataError(f"{path} is not a readable safetensors file ({error}).") from error
    rows = tensors.get(_EMBEDDING)
    if not isinstance(vocab, list) or rows is None or len(rows) != len(vocab):
        raise DataError(f"{path} is no encoder with its vocabulary; write it by save_encoder.")
    return tensors, [str(token) for token in vocab]


def _moved(rows: Tensor, old: list[str], new: Sequence[str]) -> tuple[Tensor, list[str]]:
    place = {token: i for i, token in enumerate(old)}
    unknown = [token for token in new if token not in place]
    with_mean = torch.cat([rows, rows.mean(0, keepdim=True)])
    return with_mean[[place.get(token, len(old)) for token in new]], unknown


def _shape(tensors: Mapping[str, Tensor], name: str) -> Any:
    return tuple(tensors[name].shape) if name in tensors else "nothing"
