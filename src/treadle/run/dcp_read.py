"""What this process needs of a checkpoint that several wrote by `torch.distributed.checkpoint`.

Torch finds which pieces of which files make up the parts that are wanted here. Each process reads
these files for itself, checks every byte, and unpickles nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from treadle.errors import DataError
from treadle.run import layout, manifest
from treadle.run.checkpoint_folder import verified
from treadle.run.exact_json import from_json
from treadle.run.layout import Laid, Layout, Piece, Ties
from treadle.run.manifest import LAYOUT, Manifest
from treadle.run.tensor_file import read_tensors
from treadle.shards import box_of, joined

Tensors = dict[str, dict[str, Tensor]]
Like = Callable[[str, Iterable[int]], Tensor | None]


def read_of_several(
    path: Path, found: Manifest, rank: int, like: Like | None = None
) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and values for the process of this rank; `like` is that of `read_checkpoint`.

    Raises DataError, naming the file, if one that is needed is missing, damaged or a link.
    """
    rank %= found.processes
    where = path / LAYOUT
    assert found.layout is not None
    laid = layout.from_bytes(verified(where, found.layout), str(where))
    _check_sizes(laid, found, where)
    parts, ties = laid.seen_by(rank)
    wanted = {
        part: {name: _wanted(part, name, one, like) for name, one in named.items()}
        for part, named in parts.items()
    }
    _fill(path, found, [one for named in wanted.values() for one in named.values()])
    tensors = {
        part: {name: one.given() for name, one in named.items()} for part, named in wanted.items()
    }
    _tie(tensors, ties, where)
    return tensors, _values(path, found, rank)


@dataclass(frozen=True)
class Wanted:
    """A part of a tensor, to be filled: where it lies in the whole, and where the whole is."""

    t: Tensor
    offsets: torch.Size
    like: Tensor | None
    part: str
    name: str
    laid: Laid

    def given(self) -> Tensor:
        """The part as it was asked for."""
        return self.t if self.like is None else joined(self.t, self.like)

    def reads(self) -> Iterator[tuple[Piece, Any]]:
        """Which piece has what of it, and what of that goes where."""
        laid = self.laid
        pieces = {torch.Size(piece.offsets): piece for piece in laid.pieces if 0 not in piece.sizes}
        stored = TensorStorageMetadata(
            TensorProperties(dtype=laid.dtype),
            torch.Size(laid.shape),
            [ChunkStorageMetadata(o, torch.Size(piece.sizes)) for o, piece in pieces.items()],
        )
        here = ChunkStorageMetadata(self.offsets, self.t.shape)
        for item in create_read_items_for_chunk_list(self.name, stored, [here]):
            yield pieces[item.storage_index.offset or torch.Size()], item


def _wanted(part: str, name: str, laid: Laid, like: Like | None) -> Wanted:
    other = None if like is None else like(name, laid.shape)
    if other is None:
        offsets, sizes = (0,) * len(laid.shape), laid.shape
    else:
        offsets, sizes, _ = box_of(other)
    t = torch.empty(sizes, dtype=laid.dtype)
    return Wanted(t, torch.Size(offsets), other, part, name, laid)


def _fill(path: Path, found: Manifest, wanted: Iterable[Wanted]) -> None:
    by_file: dict[str, list[tuple[Wanted, Piece, Any]]] = {}
    for one in wanted:
        for piece, item in one.reads():
            by_file.setdefault(f"{one.part}.{piece.rank}", []).append((one, piece, item))
    for file, reads in by_file.items():
        where = path / manifest.tensor_name(file)
        tensors = read_tensors(verified(where, found.tensors[file]), {}, str(where))
        for one, piece, item in reads:
            stored = tensors.get(one.name)
            fits = stored is not None and stored.dtype == one.laid.dtype
            if stored is None or not fits or tuple(stored.shape) != piece.sizes:
                raise DataError(f"{where} does not have {one.name!r} as {LAYOUT} says.")
            into = one.t[_slices(item.dest_offsets, item.lengths)]
            into.copy_(stored[_slices(item.storage_offsets, item.lengths)])


def _slices(offsets: Iterable[int], lengths: Iterable[int]) -> tuple[slice, ...]:
    return tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))


def _check_sizes(laid: Layout, found: Manifest, where: Path) -> None:
    """Raises DataError if the tensors are larger than the files that are to have them."""
    needed: Counter[str] = Counter()
    for parts in (laid.shared, *laid.own.values()):
        for part, named in parts.items():
            for one in named.values():
                for piece in one.pieces:
                    needed[f"{part}.{piece.rank}"] += math.prod(piece.sizes) * one.dtype.itemsize
    for file, nbytes in needed.items():
        if file not in found.tensors or nbytes > found.tensors[file].size:
            raise DataError(f"{where} says more of {file!r} than is there; it is damaged.")


def _tie(tensors: Tensors, ties: Ties, where: Path) -> None:
    for part, named in ties.items():
        for name, same in named.items():
            if same not in tensors.get(part, {}):
                raise DataError(f"{where} ties {name!r} to {same!r}, which is not there.")
            tensors[part].setdefault(name, tensors[part][same])


def _values(path: Path, found: Manifest, rank: int) -> dict[str, Any]:
    names = {name.rpartition(".")[0] for name in found.values}
    values = {}
    for name in names:
        own, shared = f"{name}.{rank}", f"{name}.0"
        file = own if own in found.values else shared
        if file in found.values:  # else what only other processes had
            where = path / manifest.value_name(file)
            values[name] = from_json(verified(where, found.values[file]), str(where))
    return values
