"""Checkpoints: each a folder of safetensors and JSON files that is there whole or not at all.

    checkpoints/
        step-000100/
            manifest.json          what the files must be: sizes, SHA-256, versions
            model.safetensors      one file for each part of the tensors
            optimizer.safetensors
            loop.json              one file for each value
        step-000200/

A step that is written again gets a folder of its own, `step-000200.2`, before the old one goes: at
no moment is the step absent. Files that the manifest does not name are ignored. No file can make
the reader run, import or open anything.
"""

from __future__ import annotations

import contextlib
import math
import platform
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from treadle.errors import DataError, UsageError
from treadle.run import durable, manifest
from treadle.run.exact_json import from_json, to_json
from treadle.run.manifest import MANIFEST, Manifest
from treadle.run.tensor_file import TensorFile, read_tensors, tensor_file

Found = TypeVar("Found")

_FOLDER = re.compile(r"step-(\d{6,18})(?:\.(\d{1,9}))?")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read from the folder `path`: tensors on the CPU by part and name,
    values by name."""

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

    Raises UsageError for what cannot be stored, DiskFullError where there is no room, DataError if
    the folder cannot be written; the checkpoints before are then unharmed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     weights = {"weight": torch.ones(2, 3)}
    ...     path = write_checkpoint(Path(folder), 12, {"model": weights}, {"loop": {"epoch": 1}})
    ...     path.name, read_checkpoint(path).values
    ('step-000012', {'loop': {'epoch': 1}})
    """
    check_keeps(keep_last, keep_best)
    return store(folder, content(step, tensors, values, score), keep_last, keep_best)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint, given its folder. Every byte is checked before it is used.

    Raises DataError, naming the file, if one is missing, damaged, a link, or of another checkpoint.
    """
    path = Path(path)
    found = read_manifest(path)
    tensors = {
        part: read_tensors(
            _verified(path / manifest.tensor_name(part), stored),
            found.tied.get(part, {}),
            str(path / manifest.tensor_name(part)),
        )
        for part, stored in found.tensors.items()
    }
    values = {}
    for name, stored in found.values.items():
        file = path / manifest.value_name(name)
        values[name] = from_json(_verified(file, stored), str(file))
    return Checkpoint(path, found.step, tensors, values, found)


def verify_checkpoint(path: Path) -> Manifest:
    """Checks every byte of a checkpoint, without loading it, and returns its manifest.

    Raises DataError as `read_checkpoint` does.
    """
    path = Path(path)
    found = read_manifest(path)
    for name, stored in found.files().items():
        _compare(path / name, durable.measure_file(path / name, stored.size), stored)
    return found


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint written last that is whole, or None. Each one that is damaged is passed over
    with a warning that names its file.
    """
    return _first_whole(reversed(checkpoints(folder)), _verified_folder)


def read_newest(folder: Path) -> Checkpoint | None:
    """What `newest_checkpoint` finds, read; every byte is read once."""
    return _first_whole(reversed(checkpoints(folder)), read_checkpoint)


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


def _first_whole(paths: Iterable[Path], look: Callable[[Path], Found]) -> Found | None:
    """What `look` says of the first checkpoint in which it finds no damage."""
    for path in paths:
        try:
            return look(path)
        except DataError as error:
            warnings.warn(f"A checkpoint is passed over: {error}", stacklevel=3)
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, in the order of their writing, whole or not. One whose manifest
    cannot be read comes last, for when it was written is not known.
    """
    return [path for _, path in sorted(_serials(Path(folder)))]


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint, given its folder. Raises DataError if there is none that fits
    the folder.
    """
    where = path / MANIFEST
    named = _FOLDER.fullmatch(path.resolve().name)
    if not path.is_dir() or named is None:
        raise DataError(f"{path} is not a checkpoint; give a folder such as step-000100.")
    found = manifest.from_bytes(durable.read_file(where, manifest.MOST_BYTES), str(where))
    durable.failpoint("load: manifest read")
    if found.step != int(named[1]):
        raise DataError(f"{where} is that of step {found.step:,}: it was swapped with another.")
    return found


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


def store(folder: Path, what: Content, keep_last: int, keep_best: int) -> Path:
    """Writes `what` and then lets older checkpoints go; see `write_checkpoint`."""
    folder = Path(folder)
    with durable.room_for(folder / f"step-{what.step:06d}", what.nbytes):
        durable.sweep(folder)
        before = _serials(folder)
        serial = 1 + max((number for number, _ in before if number != math.inf), default=0)
        with durable.hidden_folder(folder, f"step-{what.step:06d}") as hidden:
            _fill(hidden, what, int(serial))
            durable.flush_folder(hidden)
            durable.failpoint("save: folder on the disk")
            path = _free_name(folder, what.step)
            hidden.rename(path)
            durable.failpoint("save: renamed")
        durable.flush_folder(folder)
        durable.failpoint("save: name on the disk")
    _rotate(folder, path, keep_last, keep_best)
    return path


def _fill(hidden: Path, what: Content, serial: int) -> None:
    tensors = {
        part: durable.write_file(hidden / manifest.tensor_name(part), held.chunks())
        for part, held in what.parts.items()
    }
    values = {
        name: durable.write_file(hidden / manifest.value_name(name), [text])
        for name, text in what.texts.items()
    }
    made = Manifest(
        what.step,
        serial,
        datetime.now(UTC).isoformat(timespec="seconds"),
        what.score,
        _versions(),
        tensors,
        values,
        {part: held.tied for part, held in what.parts.items() if held.tied},
    )
    durable.write_file(hidden / MANIFEST, [manifest.to_bytes(made)])


def _free_name(folder: Path, step: int) -> Path:
    """`step-000123`, or with the next number behind it while there is one of that step."""
    taken = [_FOLDER.fullmatch(p.name) for p in folder.glob("step-*")]
    again = [int(name[2] or 1) for name in taken if name and int(name[1]) == step]
    return folder / (f"step-{step:06d}" + (f".{max(again) + 1}" if again else ""))


def _rotate(folder: Path, newest: Path, keep_last: int, keep_best: int) -> None:
    """Lets go what is neither among the last nor the best. What is damaged, or of a Treadle to
    come, does not count and stays: it is for the user to look at. A failure is a warning.
    """
    whole: dict[Path, Manifest] = {}
    for path in checkpoints(folder):
        with contextlib.suppress(DataError):
            whole[path] = _sized(path)
    step = int(newest.name.split("-")[1].split(".")[0])
    current = [path for path, found in whole.items() if path == newest or found.step != step]
    scored = [(whole[path].score, whole[path].serial, path) for path in current]
    best = sorted((row for row in scored if row[0] is not None), reverse=True)[:keep_best]
    keep = {*current[-keep_last:], *(path for *_, path in best)}
    durable.failpoint("rotate: chosen")
    try:
        for path in whole:
            if path not in keep:
                durable.discard(path)
        durable.flush_folder(folder)
    except OSError as error:
        warnings.warn(f"An older checkpoint could not be removed: {error}", stacklevel=3)
    durable.failpoint("rotate: done")


def _sized(path: Path) -> Manifest:
    """The manifest of a checkpoint whose files have their sizes; their bytes are not read."""
    found = read_manifest(path)
    for name, stored in found.files().items():
        file = path / name
        if not file.is_file() or file.stat().st_size != stored.size:
            raise DataError(f"{file} is missing or cut.")
    return found


def _serials(folder: Path) -> list[tuple[float, Path]]:
    """Every folder that is named as a checkpoint, and when it was written; infinity: unknown."""
    found: list[tuple[float, Path]] = []
    for path in folder.glob("step-*"):
        if _FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            try:
                found.append((read_manifest(path).serial, path))
            except DataError:
                found.append((math.inf, path))
    return found


def _verified_folder(path: Path) -> Path:
    verify_checkpoint(path)
    return path


def _verified(path: Path, stored: durable.Stored) -> bytes:
    data = durable.read_file(path, stored.size)
    durable.failpoint(f"load: {path.name} read")
    _compare(path, durable.stored(data), stored)
    return data


def _compare(path: Path, found: durable.Stored, stored: durable.Stored) -> None:
    if found.size != stored.size:
        raise DataError(
            f"{path} has {found.size:,} bytes where its manifest says {stored.size:,}: it was cut "
            "or changed."
        )
    if found.sha256 != stored.sha256:
        raise DataError(f"{path} is damaged: its SHA-256 is not that of its manifest.")


def _versions() -> dict[str, str]:
    from treadle import __version__

    return {
        "treadle": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
