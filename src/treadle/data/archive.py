"""Unpack an archive that nobody vouches for."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from treadle.data.manifest import FileRecord
from treadle.data.progress import TransferBar
from treadle.data.tars import unpack_tar
from treadle.data.unpacking import CHUNK, Limits, Unpacking
from treadle.data.zips import unpack_zip
from treadle.errors import DataError, UsageError

__all__ = ["SUFFIXES", "Unpacked", "unpack"]

SUFFIXES = tuple(
    ".tar.gz .tgz .tar.bz2 .tbz2 .tar.xz .txz .tar.zst .tzst .tar .zip".split()
)  # the longer before the shorter
"""How the names of archives end."""


class Unpacked(NamedTuple):
    """The folder with the data, and the files in it by their path with slashes."""

    folder: Path
    files: dict[str, FileRecord]


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> Unpacked:
    """Unpack the zip or tar file `archive` (plain, gzip, bzip2, xz, zstd) into the empty `folder`.

    Its first bytes say what it is, not its name. Returns the single top folder of the archive, or
    `folder` where it has several entries at the top. Only regular files and folders with relative
    names inside `folder` are accepted; the first member that is anything else ends it, and what
    was written until then is the caller's to remove (`scratch_folder` does).

    Raises `DataError` that names the member that was refused, or the archive if it is damaged;
    `NoRoomError` where the disk is too small; `UsageError` for zstd where nothing can read it.
    """
    into = Unpacking(archive, folder, limits or Limits())
    with (
        TransferBar(f"Unpacking {archive.name}") as bar,
        io.BufferedReader(_Watched(archive, bar), CHUNK) as source,
    ):
        _dispatch(source, into)
    top = list(folder.iterdir())
    if not top:
        raise DataError(f"The archive {archive} is empty; expected a folder of data in it.")
    if len(top) > 1 or not top[0].is_dir():
        return Unpacked(folder, into.files)
    prefix = f"{top[0].name}/"
    return Unpacked(top[0], {k.removeprefix(prefix): v for k, v in into.files.items()})


def _dispatch(source: io.BufferedReader[_Watched], into: Unpacking) -> None:
    start = source.peek(8)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        unpack_zip(source, into)
        return
    for magic, opened in _COMPRESSIONS.items():
        if start.startswith(magic):
            with _damage_named(into), opened(source) as stream:
                unpack_tar(stream, into)
            return
    unpack_tar(source, into)


@contextmanager
def _damage_named(into: Unpacking) -> Iterator[None]:
    """Whatever the decompressor finds wrong becomes a DataError that names the archive."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        into.damaged(error)
    except OSError as error:
        if error.errno is not None:  # the disk's own trouble, not the archive's
            raise
        into.damaged(error)


def _open_zstd(source: IO[bytes]) -> io.RawIOBase:
    """The tar inside zstd, by the standard library from Python 3.14 on, else by `zstandard`."""
    if sys.version_info >= (3, 14):
        from compression import zstd

        return _NamedErrors(zstd.ZstdFile(source), zstd.ZstdError)
    try:
        import zstandard
    except ImportError:
        raise UsageError(
            f"Python {sys.version_info.major}.{sys.version_info.minor} cannot read zstd by itself; "
            "install the package `zstandard`, or use Python 3.14, or an archive in another format."
        ) from None
    reader = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
    return _NamedErrors(reader, zstandard.ZstdError)


class _NamedErrors(io.RawIOBase):
    """A stream whose own kind of error becomes EOFError, as the standard library's are."""

    def __init__(self, stream: Any, error: type[Exception]) -> None:
        self._stream, self._error = stream, error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except self._error as error:
            raise EOFError(str(error)) from error


_COMPRESSIONS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda source: io.BufferedReader(_open_zstd(source), 1 << 20),
}


class _Watched(io.FileIO):
    """The archive's file, telling `bar` how far it was read."""

    def __init__(self, path: Path, bar: TransferBar) -> None:
        super().__init__(path)
        self._bar, self._total = bar, path.stat().st_size

    def readinto(self, buffer: Any) -> int:
        size = super().readinto(buffer)
        self._bar.at(self.tell(), self._total)
        return size
