"""The folder that checkpoints lie in: what is there, in which order it came, how another one gets
its name, and which older ones go.
"""

from __future__ import annotations

import contextlib
import math
import platform
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch

from treadle.errors import DataError
from treadle.run import durable, manifest
from treadle.run.manifest import MANIFEST, Manifest

_FOLDER = re.compile(r"step-(\d{6,18})(?:\.(\d{1,9}))?")


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


def name_of(step: int) -> str:
    """The name of the checkpoint of a step, as long as there is one of it."""
    return f"step-{step:06d}"


@contextmanager
def begun(folder: Path, step: int, nbytes: int) -> Iterator[tuple[Path, int]]:
    """A hidden folder to fill with a checkpoint of so many bytes, and the number that says when it
    was written. It is gone when the block ends, if it was not `published`.

    Raises DiskFullError where there is no room, DataError for anything else of the system's.
    """
    with durable.room_for(folder / name_of(step), nbytes):
        durable.sweep(folder)
        before = _serials(folder)
        serial = 1 + max((number for number, _ in before if number != math.inf), default=0)
        with durable.hidden_folder(folder, name_of(step)) as hidden:
            yield hidden, int(serial)


def published(hidden: Path, made: Manifest) -> Path:
    """Give a hidden folder that is filled its manifest and its name. Raises OSError."""
    durable.write_file(hidden / MANIFEST, [manifest.to_bytes(made)])
    durable.flush_folder(hidden)
    durable.failpoint("save: folder on the disk")
    path = _free_name(hidden.parent, made.step)
    hidden.rename(path)
    durable.failpoint("save: renamed")
    durable.flush_folder(path.parent)
    durable.failpoint("save: name on the disk")
    return path


def rotate(folder: Path, newest: Path, keep_last: int, keep_best: int) -> None:
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


def verified(path: Path, stored: durable.Stored) -> bytes:
    """The bytes of a file of a checkpoint. Raises DataError if they are not those `stored`."""
    data = durable.read_file(path, stored.size)
    durable.failpoint(f"load: {path.name} read")
    compare(path, durable.stored(data), stored)
    return data


def compare(path: Path, found: durable.Stored, stored: durable.Stored) -> None:
    """Raises DataError, naming the file, if what is found there is not what was `stored`."""
    if found.size != stored.size:
        raise DataError(
            f"{path} has {found.size:,} bytes where its manifest says {stored.size:,}: it was cut "
            "or changed."
        )
    if found.sha256 != stored.sha256:
        raise DataError(f"{path} is damaged: its SHA-256 is not that of its manifest.")


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """What writes a checkpoint here."""
    from treadle import __version__

    return {
        "treadle": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _free_name(folder: Path, step: int) -> Path:
    """`step-000123`, or with the next number behind it while there is one of that step."""
    taken = [_FOLDER.fullmatch(p.name) for p in folder.glob("step-*")]
    again = [int(name[2] or 1) for name in taken if name and int(name[1]) == step]
    return folder / (f"step-{step:06d}" + (f".{max(again) + 1}" if again else ""))


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
