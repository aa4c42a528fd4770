"""What was unpacked into a folder: the list by which it is verified later."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from treadle.data.progress import TransferBar
from treadle.errors import DataError

__all__ = ["MANIFEST", "Differences", "FileRecord", "Manifest", "verify"]

MANIFEST = ".treadle.json"
"""The name of the list, inside the folder that it lists."""

_VERSION = 1
_MEND = "Fetch the data anew to have one."


class FileRecord(NamedTuple):
    """The size of a file in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`files` maps each path, relative to the folder and with slashes, to its record; `source` is
    the address that the archive came from."""

    source: str
    files: dict[str, FileRecord]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files.values())

    def write(self, folder: Path) -> None:
        """Write the list into `folder`."""
        text = json.dumps({"version": _VERSION, "source": self.source, "files": self.files})
        (folder / MANIFEST).write_text(text, encoding="ascii")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The list in `folder`.

        Raises `DataError` where there is none, or none that can be read.
        """
        path = folder / MANIFEST
        try:
            told = json.loads(path.read_text(encoding="ascii"))
            if told["version"] != _VERSION:
                raise DataError(
                    f"The list {path} is of version {told['version']}; this Treadle reads version "
                    f"{_VERSION}. {_MEND}"
                )
            files = {
                str(name): FileRecord(int(n), str(h)) for name, (n, h) in told["files"].items()
            }
            return cls(str(told["source"]), files)
        except FileNotFoundError:
            raise DataError(
                f"The folder {folder} has no list of what was unpacked into it ({MANIFEST}), so it "
                f"cannot be verified. {_MEND}"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"The list {path} cannot be read ({error}). {_MEND}") from error


class Differences(NamedTuple):
    """The files of a folder that are not as they were unpacked, sorted."""

    missing: list[str]
    extra: list[str]
    changed: list[str]


def verify(folder: Path) -> tuple[Manifest, Differences]:
    """Compare every file in `folder` with the list of what was unpacked: its size, its SHA-256.

    Raises `DataError` where `folder` is missing or has no list.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}; expected an unpacked data set.")
    manifest = Manifest.read(folder)
    found = dict(_walk(str(folder), ""))
    changed, done = [], 0
    with TransferBar(f"Verifying {folder.name}", manifest.size) as bar:
        for name, record in manifest.files.items():
            if name in found:
                if _record(found[name], record.size) != record:
                    changed.append(name)
                done += record.size
                bar.at(done, manifest.size)
    missing = manifest.files.keys() - found.keys()
    extra = found.keys() - manifest.files.keys() - {MANIFEST}
    return manifest, Differences(sorted(missing), sorted(extra), sorted(changed))


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, str]]:
    """(relative name, path) of everything below `folder` that is not a folder."""
    with os.scandir(folder) as scan:
        for entry in scan:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name, entry.path


def _record(path: str, expected: int) -> FileRecord | None:
    """What the file is now; None where it differs in size or cannot be read."""
    try:
        if not Path(path).is_file() or Path(path).stat().st_size != expected:
            return None
        with Path(path).open("rb") as file:
            return FileRecord(expected, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError:
        return None
