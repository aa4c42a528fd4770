"""Tensors as a safetensors file, written straight from where they lie.

The format stores every tensor whole and on its own. Names that stand for the very same tensor (tied
weights) are stored once; which names they are goes into the manifest, and reading ties them again.
Tensors that only overlap are stored each on its own, with the same bits. Of a tensor that is spread
over several processes, each has its part.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from safetensors.torch import load
from torch import Tensor

from treadle.errors import DataError, UsageError
from treadle.shards import Box, box_of, is_sharded, local

_BLOCK = 8 << 20  # bytes written and hashed at a time, while they are in the processor's cache
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one part: each once, and which further names stand for which of them. Of those
    in `boxes` it has a part, which lies there in the whole."""

    tensors: dict[str, Tensor]
    tied: dict[str, str]
    boxes: dict[str, Box] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the file, without its header."""
        return sum(t.nbytes for t in self.tensors.values())

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes of the file, in order. Raises UsageError if it has but parts of tensors."""
        if self.boxes:
            raise UsageError(
                f"{next(iter(self.boxes))} is spread over several processes, and this one has a "
                "part of it; let all of them save it together, or give tensor.full_tensor()."
            )
        # The widest first, so that each tensor lies where its type must.
        order = sorted(self.tensors.items(), key=lambda item: -item[1].itemsize)
        header, end = {}, 0
        for name, t in order:
            start, end = end, end + t.nbytes
            header[name] = {
                "dtype": DTYPES[t.dtype],
                "shape": list(t.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        yield len(text).to_bytes(8, "little") + text
        for _, t in order:
            yield from blocks(t)


def tensor_file(part: str, tensors: Mapping[str, Tensor]) -> TensorFile:
    """Sorts the tensors of a part into those to store and those tied to one of them.

    Raises UsageError for what safetensors cannot hold.
    """
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    boxes: dict[str, Box] = {}
    first: dict[object, str] = {}
    for name, tensor in tensors.items():
        where = f"tensors[{part!r}][{name!r}]"
        if not isinstance(name, str):
            raise UsageError(f"{where}: the name is a {type(name).__name__}; give text.")
        if name == "__metadata__":
            raise UsageError(f"{where}: safetensors keeps that name for itself; give another.")
        t = _plain(tensor, where)
        same = first.setdefault(_identity(t, name), name)
        if same != name:
            tied[name] = same
            continue
        kept[name] = t
        if is_sharded(tensor) and not (box := box_of(tensor)).is_whole:
            boxes[name] = box
    return TensorFile(kept, tied, boxes)


def read_tensors(data: bytes, tied: Mapping[str, str], where: str) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU; tied names give the same tensor. The order of the names is
    not kept. Raises DataError, naming `where`, if the bytes are not safetensors.
    """
    try:
        tensors = load(data)
    except Exception as error:  # an error class of its own for each damage
        raise DataError(f"{where} is not a safetensors file ({error}).") from error
    for name, stored in tied.items():
        if stored not in tensors or name in tensors:
            raise DataError(f"{where} ties {name!r} to {stored!r}, which does not fit the file.")
    return tensors | {name: tensors[stored] for name, stored in tied.items()}


def _plain(tensor: object, where: str) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise UsageError(f"{where} is a {type(tensor).__name__}; give a tensor.")
    t = local(tensor).detach()
    if t.layout != torch.strided or t.is_quantized or t.device.type == "meta":
        raise UsageError(f"{where} is not a dense tensor with values; give tensor.to_dense().")
    if t.dtype not in DTYPES:
        raise UsageError(f"{where} has the dtype {t.dtype}, which safetensors does not hold.")
    return t.resolve_conj().resolve_neg()


def _identity(t: Tensor, name: str) -> object:
    if t.numel() == 0:
        return name  # no storage to share
    storage = t.untyped_storage().data_ptr()
    return t.device, storage, t.storage_offset(), t.shape, t.stride(), t.dtype


def blocks(t: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, in order."""
    flat = t.cpu().contiguous().reshape(-1)
    if flat.numel():
        view = flat.view(torch.uint8).numpy().data
        for i in range(math.ceil(len(view) / _BLOCK)):
            yield view[i * _BLOCK : (i + 1) * _BLOCK]
