"""A checkpoint that several processes write, by `torch.distributed.checkpoint`, without pickle.

Torch plans who writes what: of a tensor that is spread, each its part, and of what all have, each
an equal share. `Planner` tells it what there is: tensors, and values as bytes of JSON. What a
process has that is not what rank 0 has, such as the state of its random generators, gets a name of
its own. `Storage` writes the files: rank 0 makes the hidden folder, all fill it, and when all have
brought theirs to the disk, rank 0 writes layout and manifest and gives the folder its name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    BytesIOWriteData,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter
from torch.futures import Future

from treadle.errors import DataError, RankError
from treadle.run import durable, layout, manifest
from treadle.run.checkpoint import Content
from treadle.run.checkpoint_folder import begun, name_of, now, published, rotate, versions
from treadle.run.durable import Stored
from treadle.run.layout import Laid, Layout, Parts, Piece, Ties
from treadle.run.manifest import Manifest
from treadle.run.tensor_file import TensorFile, blocks
from treadle.run.together import first_error
from treadle.shards import Box, box_of
from treadle.world import World, is_broken


def write_of_several(
    folder: Path, what: Content, keep_last: int, keep_best: int, among: World
) -> Path:
    """Writes what the processes `among` have, one part each, as one checkpoint; all call this, and
    `among.hosts` is the group by which they agree.

    Raises the same in all of them: what `write_checkpoint` raises, and RankError if one of them is
    gone.
    """
    with ExitStack() as stack:
        storage = Storage(folder, what, among, stack)
        try:
            saved = save(
                {}, storage_writer=storage, planner=Planner(what), process_group=among.hosts
            )
        except CheckpointException as error:
            failures = {rank: raised for rank, (raised, _) in error.failures.items()}
            failed = first_error([failures.get(rank) for rank in range(among.size)])
            raise failed from error  # type: ignore[misc]
        except RuntimeError as error:
            if not is_broken(error):
                raise
            raise RankError(
                f"the checkpoint of step {what.step:,} was not written: a process failed or does "
                f"not answer ({str(error).splitlines()[0]})."
            ) from error
    path = folder / str(saved.storage_data)
    if among.is_main:
        rotate(folder, path, keep_last, keep_best)
    return path


@dataclass(frozen=True)
class Told:
    """What a process tells rank 0 of what it has whole, by name: digests. And its ties."""

    digests: dict[str, bytes]
    tied: Ties


class Planner(DefaultSavePlanner):
    """What this process has. As names torch gets `model/0.weight`, `/state` for a value, and
    `3:model/0.weight` for what rank 3 has of its own."""

    def __init__(self, what: Content) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.tensors = {
            f"{part}/{name}": (t, file.boxes.get(name))
            for part, file in what.parts.items()
            for name, t in file.tensors.items()
        }
        self.texts = {f"/{name}": text for name, text in what.texts.items()}
        self.tied = {part: file.tied for part, file in what.parts.items() if file.tied}

    def set_up_planner(
        self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False
    ) -> None:
        """Nothing: what there is was given."""

    def create_local_plan(self) -> SavePlan:
        digests = {key: hashlib.sha256(text).digest() for key, text in self.texts.items()}
        digests |= {key: _digest(t) for key, (t, box) in self.tensors.items() if box is None}
        items = [item for key, held in self.tensors.items() for item in _of_tensor(key, *held)]
        items += [_of_text(key, text) for key, text in self.texts.items()]
        return SavePlan(items, planner_data=Told(digests, self.tied))

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        shared: Told = all_plans[0].planner_data
        plans = [_apart(plan, rank, shared) for rank, plan in enumerate(all_plans)]
        plans, metadata = super().create_global_plan(plans)
        tied: list[Ties] = [plan.planner_data.tied for plan in all_plans]
        metadata.planner_data = {
            rank: ties for rank, ties in enumerate(tied) if rank == 0 or ties != tied[0]
        }
        return plans, metadata

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        _, part, name = _parsed(write_item.index.fqn)
        key = f"{part}/{name}"
        return io.BytesIO(self.texts[key]) if not part else self.tensors[key][0]


def _of_tensor(key: str, t: Tensor, box: Box | None) -> Iterator[WriteItem]:
    if box is not None and not t.numel():
        return  # more processes than rows
    lies = box or box_of(t)
    offsets, sizes = torch.Size(lies.offsets), torch.Size(lies.sizes)
    yield WriteItem(
        MetadataIndex(key, offsets),
        WriteItemType.TENSOR if box is None else WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            ChunkStorageMetadata(offsets, sizes),
            TensorProperties(dtype=t.dtype),
            torch.Size(lies.shape),
        ),
    )


def _of_text(key: str, text: bytes) -> WriteItem:
    data = BytesIOWriteData(len(text))
    return WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO, bytes_io_data=data)


def _digest(t: Tensor) -> bytes:
    found = hashlib.sha256(f"{t.dtype}{tuple(t.shape)}".encode())
    for block in blocks(t):
        found.update(block)
    return found.digest()


def _apart(plan: SavePlan, rank: int, shared: Told) -> SavePlan:
    """A plan in which what differs from rank 0's has a name of its own."""
    told: Told = plan.planner_data
    items = []
    for item in plan.items:
        key = item.index.fqn
        if key in told.digests and told.digests[key] != shared.digests.get(key):
            own = MetadataIndex(f"{rank}:{key}", item.index.offset)
            items.append(dataclasses.replace(item, index=own))
        elif rank == 0 or item.type != WriteItemType.BYTE_IO:  # values are rank 0's to write
            items.append(item)
    return SavePlan(items)


def _parsed(key: str) -> tuple[int | None, str, str]:
    """Whose own it is, None if it is not one's own, the part and the name."""
    place, _, name = key.partition("/")
    rank, colon, part = place.rpartition(":")
    return int(rank) if colon else None, part, name


@dataclass(frozen=True)
class Written:
    """The files of one process."""

    tensors: dict[str, Stored]
    values: dict[str, Stored]


class Storage(StorageWriter):
    """The files of a checkpoint: for each process and part a safetensors file, and one of JSON for
    each value that is its own."""

    def __init__(self, folder: Path, what: Content, among: World, stack: ExitStack) -> None:
        self.folder, self.what, self.among, self.stack = folder, what, among, stack

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: one of these writes one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing, before all have said what they have."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self.plans = plans
        nbytes = sum(_nbytes(item) for plan in plans for item in plan.items)
        self.hidden, self.serial = self.stack.enter_context(
            begun(self.folder, self.what.step, nbytes)
        )
        return [dataclasses.replace(plan, storage_data=self.hidden.name) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[Any]]:
        hidden, rank = self.folder / str(plan.storage_data), self.among.rank
        if not hidden.is_dir():
            raise DataError(
                f"{self.folder} is not the same folder for all processes: what rank 0 makes there "
                "is not seen here; give one that all machines share."
            )
        parts: dict[str, dict[str, Tensor]] = {}
        texts: dict[str, bytes] = {}
        for item in plan.items:
            _, part, name = _parsed(item.index.fqn)
            data = planner.resolve_data(item)
            if isinstance(data, io.BytesIO):
                texts[name] = data.getvalue()
            else:
                parts.setdefault(part, {})[name] = data
        files = {f"{part}.{rank}": TensorFile(named, {}) for part, named in parts.items()}
        nbytes = sum(file.nbytes for file in files.values())
        with durable.room_for(self.folder / name_of(self.what.step), nbytes):
            tensors = {
                name: durable.write_file(hidden / manifest.tensor_name(name), file.chunks())
                for name, file in files.items()
            }
            values = {
                f"{name}.{rank}": durable.write_file(
                    hidden / manifest.value_name(f"{name}.{rank}"), [text]
                )
                for name, text in texts.items()
            }
        done: Future[list[Any]] = Future()
        done.set_result([Written(tensors, values)])
        return done

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        written: list[Written] = [one for by_rank in results for one in by_rank]
        laid = layout.to_bytes(_layout(self.plans, metadata.planner_data))
        with durable.room_for(self.folder / name_of(self.what.step), len(laid)):
            made = Manifest(
                self.what.step,
                self.serial,
                now(),
                self.what.score,
                versions(),
                {name: stored for one in written for name, stored in one.tensors.items()},
                {name: stored for one in written for name, stored in one.values.items()},
                {},
                self.among.size,
                durable.write_file(self.hidden / manifest.LAYOUT, [laid]),
            )
            path = published(self.hidden, made)
        # This goes to all, who need no more of it.
        metadata.state_dict_metadata, metadata.planner_data = {}, None
        metadata.storage_data = path.name

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False


def _nbytes(item: WriteItem) -> int:
    if item.tensor_data is not None:
        return item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize
    return item.bytes_io_data.nbytes if item.bytes_io_data is not None else 0


def _layout(plans: list[SavePlan], tied: dict[int, Ties]) -> Layout:
    shared: Parts = {}
    own: dict[int, Parts] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            if (data := item.tensor_data) is None:
                continue
            owner, part, name = _parsed(item.index.fqn)
            named = (shared if owner is None else own.setdefault(owner, {})).setdefault(part, {})
            piece = Piece(rank, tuple(data.chunk.offsets), tuple(data.chunk.sizes))
            before = named[name].pieces if name in named else ()
            named[name] = Laid(data.properties.dtype, tuple(data.size), (*before, piece))
    return Layout(shared, own, tied)
