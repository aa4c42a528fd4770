"""Checkpoints: each a folder of safetensors and JSON files that is there whole or not at all.

    checkpoints/
        step-000100/
            manifest.json          what the files must be: sizes, SHA-256, versions
            model.safetensors      one file for each part of the tensors
            optimizer.safetensors
            loop.json              one file for each value
        step-000200/

Several processes write one checkpoint together, with files of each (`model.0.safetensors`) and
`layout.json`, by torch.distributed.checkpoint; see `dcp_write`. Either kind can be read by any
number of processes, each of which gets what it needs.

A step that is written again gets a folder of its own, `step-000200.2`, before the old one goes: at
no moment is the step absent. Files that the manifest does not name are ignored. No file can make
the reader run, import or open anything.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from treadle.errors import DataError, UsageError
from treadle.run import durable, manifest
from treadle.run.checkpoint_folder import (
    begun,
    checkpoints,
    compare,
    now,
    published,
    read_manifest,
    rotate,
    verified,
    versions,
)
from treadle.run.exact_json import from_json, to_json
from treadle.run.manifest import Manifest
from treadle.run.tensor_file import TensorFile, read_tensors, tensor_file
from treadle.run.together import together
from treadle.shards import cut
from treadle.world import World, world

__all__ = [
    "Checkpoint",
    "Content",
    "best_checkpoint",
    "check_keeps",
    "checkpoints",
    "content",
    "newest_checkpoint",
    "read_checkpoint",
    "read_manifest",
    "read_newest",
    "store",
    "verify_checkpoint",
    "write_checkpoint",
]

Found = TypeVar("Found")
Like = Callable[[str, Iterable[int]], Tensor | None]
"""Given the name and the shape of a tensor, the DTensor that it is cut like; None: it is whole."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read from the folder `path`: tensors on the CPU by part and name,
    values by name. Those that were cut are DTensors, on their device."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any]
    manifest: Manifest


@dataclass(frozen=True)
class Content:
    """What is to be written: checked, and for the values already turned into text."""

    step: int
    parts: dict[str, TensorFile]
    texts: dict[str, bytes]
    score: float | None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the disk, but for headers."""
        parts = sum(part.nbytes for part in self.parts.values())
        return parts + sum(len(text) for text in self.texts.values())


def write_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    values: Mapping[str, Any],
    *,
    keep_last: int = 2,
    keep_best: int = 0,
    score: float | None = None,
) -> Path:
    """Writes a checkpoint into `folder` and returns its own folder, once it is on the disk.

    `tensors` are given by part ("model", "optimizer", ...) and name, of any shape and on any
    device; `values` by name: None, bool, int, float, str, and lists and dictionaries with text keys
    of them. Floats keep every bit, also those that are not finite. Long columns of numbers are
    better given as tensors. Tensors that are the very same (tied weights) are stored once and come
    back as the same; memory layout (channels_last) is not kept.

    Older checkpoints go only after this one is on the disk: the `keep_last` written last stay, and
    the `keep_best` with the largest `score` (a score that is not finite is never best).

    In a run of several processes all of them call it, and write one checkpoint together: of a
    DTensor each its part, of what is the same in all one of them, and what differs from rank 0's
    each its own. If one fails, none has written it, and all raise the same.

    Raises UsageError for what cannot be stored, DiskFullError where there is no room, DataError if
    the folder cannot be written; the checkpoints before are then unharmed.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     weights = {"weight": torch.ones(2, 3)}
    ...     path = write_checkpoint(Path(folder), 12, {"model": weights}, {"loop": {"epoch": 1}})
    ...     path.name, read_checkpoint(path).values
    ('step-000012', {'loop': {'epoch': 1}})
    """
    check_keeps(keep_last, keep_best)
    mine = world()
    return store(folder, content(step, tensors, values, score), keep_last, keep_best, mine)


def read_checkpoint(path: Path, like: Like | None = None) -> Checkpoint:
    """Reads a checkpoint, given its folder. Every byte is checked before it is used.

    Of one that n processes wrote, the process of rank r gets what that of rank r modulo n had.
    `like` says, of a name and a shape, as which DTensor this process is to have its part.

    Raises DataError, naming the file, if one is missing, damaged, a link, or of another checkpoint.
    """
    path = Path(path)
    found = read_manifest(path)
    if found.layout is not None:
        from treadle.run.dcp_read import read_of_several

        tensors, values = read_of_several(path, found, world().rank, like)
        return Checkpoint(path, found.step, tensors, values, found)
    tensors = {}
    for part, stored in found.tensors.items():
        file = path / manifest.tensor_name(part)
        named = read_tensors(verified(file, stored), found.tied.get(part, {}), str(file))
        tensors[part] = named if like is None else _cut(named, like)
    values = {}
    for name, stored in found.values.items():
        file = path / manifest.value_name(name)
        values[name] = from_json(verified(file, stored), str(file))
    return Checkpoint(path, found.step, tensors, values, found)


def _cut(named: Mapping[str, Tensor], like: Like) -> dict[str, Tensor]:
    alike = {name: like(name, t.shape) for name, t in named.items()}
    return {
        name: t if (other := alike[name]) is None else cut(t, other) for name, t in named.items()
    }


def verify_checkpoint(path: Path) -> Manifest:
    """Checks every byte of a checkpoint, without loading it, and returns its manifest.

    Raises DataError as `read_checkpoint` does.
    """
    path = Path(path)
    found = read_manifest(path)
    for name, stored in found.files().items():
        compare(path / name, durable.measure_file(path / name, stored.size), stored)
    return found


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint written last that is whole, or None. Each one that is damaged is passed over
    with a warning that names its file.
    """
    return _first_whole(reversed(checkpoints(folder)), _verified_folder)


def read_newest(
    folder: Path, like: Like | None = None, among: World | None = None
) -> Checkpoint | None:
    """What `newest_checkpoint` finds, read; every byte is read once. `like` is that of
    `read_checkpoint`.

    The processes of a run (`among`, by default all) call it together, and all get the same
    checkpoint: the newest that is whole for each of them.
    """
    mine = world() if among is None else among
    paths = mine.same(list(reversed(checkpoints(folder))))

    def read(path: Path) -> Checkpoint:
        return together(mine, lambda: read_checkpoint(path, like))

    return _first_whole(paths, read, mine.is_main)


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the largest score that is whole, of equal ones the newest; None if there
    is none with a score. Each one that is damaged is passed over with a warning.
    """
    scores: list[tuple[float, int, Path]] = []
    for path in checkpoints(folder):
        found = _first_whole([path], read_manifest)
        if found is not None and found.score is not None:
            scores.append((found.score, found.serial, path))
    return _first_whole((path for *_, path in sorted(scores, reverse=True)), _verified_folder)


def _first_whole(
    paths: Iterable[Path], look: Callable[[Path], Found], warn: bool = True
) -> Found | None:
    """What `look` says of the first checkpoint in which it finds no damage."""
    for path in paths:
        try:
            return look(path)
        except DataError as error:
            if warn:
                warnings.warn(f"A checkpoint is passed over: {error}", stacklevel=3)
    return None


def content(
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    values: Mapping[str, Any],
    score: float | None,
) -> Content:
    """Checks what is to be written. Raises UsageError, naming what cannot be."""
    if type(step) is not int or not 0 <= step < 10**18:
        raise UsageError(f"step is {step!r}; give the number of updates, from 0.")
    manifest.check_names(list(tensors), "a part of the tensors")
    manifest.check_names(list(values), "a value")
    return Content(
        step,
        {part: tensor_file(part, named) for part, named in tensors.items()},
        {name: to_json(value, f"values[{name!r}]") for name, value in values.items()},
        float(score) if score is not None and math.isfinite(score) else None,
    )


def check_keeps(keep_last: int, keep_best: int) -> None:
    """Raises UsageError unless at least the newest is kept."""
    if keep_last < 1 or keep_best < 0:
        raise UsageError(
            f"keep_last is {keep_last} and keep_best {keep_best}; give at least 1 and at least 0."
        )


def _verified_folder(path: Path) -> Path:
    verify_checkpoint(path)
    return path


def store(folder: Path, what: Content, keep_last: int, keep_best: int, among: World) -> Path:
    """Writes `what` and then lets older checkpoints go; see `write_checkpoint`."""
    folder = Path(folder)
    if among.size > 1:
        from treadle.run.dcp_write import write_of_several

        return write_of_several(folder, what, keep_last, keep_best, among)
    with begun(folder, what.step, what.nbytes) as (hidden, serial):
        path = published(hidden, _fill(hidden, what, serial))
    rotate(folder, path, keep_last, keep_best)
    return path


def _fill(hidden: Path, what: Content, serial: int) -> Manifest:
    tensors = {
        part: durable.write_file(hidden / manifest.tensor_name(part), held.chunks())
        for part, held in what.parts.items()
    }
    values = {
        name: durable.write_file(hidden / manifest.value_name(name), [text])
        for name, text in what.texts.items()
    }
    tied = {part: held.tied for part, held in what.parts.items() if held.tied}
    return Manifest(what.step, serial, now(), what.score, versions(), tensors, values, tied)
