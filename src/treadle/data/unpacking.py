"""The folder that an archive is unpacked into: which members may enter it, and how much."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from treadle.data.home import FULL, NoRoomError, ensure_room, megabytes
from treadle.data.manifest import FileRecord
from treadle.errors import DataError

__all__ = ["CHUNK", "Limits", "Unpacking"]

CHUNK = 1 << 18
"""Bytes that are read and written at a time."""

_LONGEST_NAME = 1024  # bytes of a whole path
_LONGEST_PART = 255  # bytes of one folder or file name: what most file systems take
_DEEPEST = 64
_ENTRY = 1024  # bytes that a member counts for by being there: a million empty files are a bomb


@dataclass(frozen=True)
class Limits:
    """How much an archive may unpack to; one that exceeds a limit is refused.

    `members`: files and folders. `size`: bytes in all. `ratio`: unpacked bytes for each byte of
    the archive; counts only above `small` bytes. (Images do not shrink, text does by 10, and
    deflate by 1032 at most; an archive of zeros is the only honest one above 200.)
    """

    members: int = 5_000_000
    size: int = 2 << 40
    ratio: float = 200.0
    small: int = 64 << 20


class Unpacking:
    """Takes the members of `archive` one by one and writes them into the empty `folder`.

    Only files and folders come in, by names that are relative, stay inside and are new. Nothing
    is ever written through a link, as no link is ever made: the standard library's filters could
    be led outside by chains of links (CVE-2025-4517 and its kin). Modes, owners and times of the
    archive are dropped. `files` is what was written, by its path with slashes.
    """

    def __init__(self, archive: Path, folder: Path, limits: Limits) -> None:
        self.archive, self.folder, self.limits = archive, folder, limits
        self.files: dict[str, FileRecord] = {}
        self.member = ""  # the name of the one at hand, for messages
        self._members = self._bytes = 0
        self._folders = {folder}
        self._archive_bytes = archive.stat().st_size
        self._free = shutil.disk_usage(folder).free

    def refuse(self, trouble: str) -> NoReturn:
        """Raise the `DataError` that names the member at hand and its trouble."""
        raise DataError(
            f"The archive {self.archive} was refused: its member {self.member!r} {trouble}. "
            "Expected only files and folders with plain relative names; get the archive from a "
            "source that you trust."
        )

    def damaged(self, trouble: object) -> NoReturn:
        """Raise the `DataError` of an archive that is not whole."""
        after = f", after its member {self.member!r}" if self.member else ""
        raise DataError(
            f"The archive {self.archive} is damaged or not an archive{after} ({trouble})."
        )

    def enter(self, name: str) -> None:
        """The member `name` comes next: refuse a name that cannot be meant, and one too many."""
        self.member = name
        self._members += 1
        if trouble := _trouble_with(name):
            self.refuse(trouble)
        if self._members > self.limits.members:
            self.refuse(f"is one more than the {self.limits.members:,} that are allowed")
        self.grow(_ENTRY)

    def grow(self, size: int) -> None:
        """`size` more bytes came out of the archive: refuse what only a bomb would hold."""
        self._bytes += size
        self.expect(0)

    def expect(self, size: int) -> None:
        """`size` more bytes are announced: refuse them before they are written."""
        total = self._bytes + size
        if total > self.limits.size:
            self.refuse(f"makes it larger than the {megabytes(self.limits.size)} that are allowed")
        if total > max(self.limits.small, self.limits.ratio * self._archive_bytes):
            self.refuse(
                f"makes it more than {self.limits.ratio:g} times as large as the archive's "
                f"{megabytes(self._archive_bytes)}: an archive bomb"
            )
        if total > self._free:
            ensure_room(self.folder, size, f"Unpacking {self.archive.name}")

    def add_folder(self, name: str) -> None:
        """Make the folder `name`, which may be there already."""
        self._make(self._path(name), f"{name.rstrip('/')}/")

    def add_file(self, name: str, body: Iterator[bytes]) -> int:
        """Write the file `name`; returns its size in bytes."""
        path = self._path(name)
        if path == self.folder or name.endswith("/"):
            self.refuse("is a file with the name of a folder")
        self._make(path.parent, name)
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("xb") as file:
                for chunk in body:
                    digest.update(chunk)
                    size += file.write(chunk)
        except FileExistsError:
            self.refuse(
                "is a file where a folder is"
                if path.is_dir()
                else "appears twice, or its name differs from another only by case"
            )
        except OSError as error:
            self._explain(error)
        self.files[path.relative_to(self.folder).as_posix()] = FileRecord(size, digest.hexdigest())
        return size

    def _path(self, name: str) -> Path:
        return self.folder.joinpath(*(part for part in name.split("/") if part not in ("", ".")))

    def _make(self, folder: Path, name: str) -> None:
        if folder in self._folders:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            self.refuse("lies below a file, or is a folder where a file is")
        except OSError as error:
            self._explain(error)
        self._folders.add(folder)

    def _explain(self, error: OSError) -> NoReturn:
        """An error of the disk, as a sentence; errors of the archive itself have no number."""
        if error.errno in FULL:
            raise NoRoomError(
                f"The disk of {self.folder} became full while {self.archive.name} was unpacked. "
                "Make room, or give a folder elsewhere."
            ) from error
        if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
            self.refuse(f"has a name that this file system does not take ({error.strerror})")
        raise error


def _trouble_with(name: str) -> str:
    parts = name.split("/")
    if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name):
        return "has an absolute name"
    if ".." in re.split(r"[/\\]", name):
        return "leads out of its folder"
    if "\\" in name:
        return "has a backslash in its name"
    if re.search(r"[\x00-\x1f\x7f]", name):
        return "has a control character in its name"
    sizes = [len(part.encode("utf-8", "surrogatepass")) for part in parts]
    if sum(sizes) + len(parts) > _LONGEST_NAME or max(sizes) > _LONGEST_PART:
        return "has a name that is too long"
    if len(parts) > _DEEPEST:
        return f"lies more than {_DEEPEST} folders deep"
    return ""
