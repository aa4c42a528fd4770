"""What this process needs of a checkpoint that several wrote, by `torch.distributed.checkpoint`.

Torch finds which pieces of which files make up the parts that are wanted here; `Reader` reads these
files, checks every byte, and unpickles nothing.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from treadle.errors import DataError
from treadle.run import layout, manifest
from treadle.run.checkpoint_folder import verified
from treadle.run.exact_json import from_json
from treadle.run.layout import Laid, Layout, Parts, Ties
from treadle.run.manifest import LAYOUT, Manifest
from treadle.run.tensor_file import read_tensors
from treadle.shards import box_of, joined

Tensors = dict[str, dict[str, Tensor]]


def read_of_several(
    path: Path,
    found: Manifest,
    rank: int,
    like: Callable[[str, Iterable[int]], Tensor | None] | None = None,
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
        f"{part}/{name}": _wanted(name, one, like)
        for part, named in parts.items()
        for name, one in named.items()
    }
    _load(path, found, parts, wanted)
    tensors: Tensors = {part: {} for part in parts}
    for part, named in parts.items():
        for name in named:
            tensors[part][name] = wanted[f"{part}/{name}"].given()
    _tie(tensors, ties, where)
    return tensors, _values(path, found, rank)


@dataclass(frozen=True)
class Wanted:
    """A part of a tensor, to be filled, which lies at `offsets` in the whole."""

    t: Tensor
    offsets: torch.Size
    like: Tensor | None

    def given(self) -> Tensor:
        """The part as it was asked for."""
        return self.t if self.like is None else joined(self.t, self.like)


def _wanted(
    name: str, laid: Laid, like: Callable[[str, Iterable[int]], Tensor | None] | None
) -> Wanted:
    other = None if like is None else like(name, laid.shape)
    if other is None:
        offsets, sizes = (0,) * len(laid.shape), laid.shape
    else:
        offsets, sizes, _ = box_of(other)
    return Wanted(torch.empty(sizes, dtype=laid.dtype), torch.Size(offsets), other)


def _load(path: Path, found: Manifest, parts: Parts, wanted: dict[str, Wanted]) -> None:
    reader = Reader(path, found, parts)
    with warnings.catch_warnings():
        # Each process reads what it needs; that all agree on the checkpoint is seen to elsewhere.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            load({}, storage_reader=reader, planner=Planner(wanted), no_dist=True)
        except CheckpointException as error:
            raise error.failures[0][0] from None


class Planner(DefaultLoadPlanner):
    """What is wanted, by the names that torch gets for it."""

    def __init__(self, wanted: dict[str, Wanted]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.wanted = wanted

    def set_up_planner(self, state_dict: Any, metadata: Any = None, *args: Any) -> None:
        self.stored: dict[str, Any] = metadata.state_dict_metadata

    def create_local_plan(self) -> LoadPlan:
        items: list[ReadItem] = []
        for key, one in self.wanted.items():
            chunk = ChunkStorageMetadata(one.offsets, one.t.shape)
            items += create_read_items_for_chunk_list(key, self.stored[key], [chunk])
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        t = self.wanted[read_item.dest_index.fqn].t
        return t[_slices(read_item.dest_offsets, read_item.lengths)]


class Reader(StorageReader):
    """The files of a checkpoint, each read once and checked."""

    def __init__(self, path: Path, found: Manifest, parts: Parts) -> None:
        self.path, self.found = path, found
        self.pieces: dict[MetadataIndex, tuple[str, str, torch.dtype, tuple[int, ...]]] = {}
        self.metadata = Metadata({})
        for part, named in parts.items():
            for name, laid in named.items():
                self._add(part, name, laid)

    def _add(self, part: str, name: str, laid: Laid) -> None:
        key, chunks = f"{part}/{name}", []
        for piece in laid.pieces:
            offsets = torch.Size(piece.offsets)
            chunks.append(ChunkStorageMetadata(offsets, torch.Size(piece.sizes)))
            file = f"{part}.{piece.rank}"
            self.pieces[MetadataIndex(key, offsets)] = file, name, laid.dtype, piece.sizes
        properties = TensorProperties(dtype=laid.dtype)
        self.metadata.state_dict_metadata[key] = TensorStorageMetadata(
            properties, torch.Size(laid.shape), chunks
        )

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: one of these reads one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata

    def set_up_storage_reader(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: what there is was given."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self.pieces[item.storage_index][0], []).append(item)
        for file, items in by_file.items():
            where = self.path / manifest.tensor_name(file)
            tensors = read_tensors(verified(where, self.found.tensors[file]), {}, str(where))
            for item in items:
                _, name, dtype, sizes = self.pieces[item.storage_index]
                stored = tensors.get(name)
                if stored is None or stored.dtype != dtype or tuple(stored.shape) != sizes:
                    raise DataError(f"{where} does not have {name!r} as {LAYOUT} says.")
                into = planner.resolve_tensor(item)
                into.copy_(stored[_slices(item.storage_offsets, item.lengths)])
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False


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
