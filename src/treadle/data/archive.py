"""Unpack an archive that nobody vouches for."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from treadle.errors import DataError

__all__ = ["unpack"]

_CHUNK = 1 << 20


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the tar file `archive` (plain, gzip, bzip2 or xz) into the empty `folder`.

    Returns the single top folder of the archive, or `folder` where it has several entries at the
    top. Only regular files and folders with relative names inside `folder` are accepted. Links
    are refused altogether: the standard library's `data` filter could be led outside by chains of
    them (CVE-2025-4517 and its kin) in the Python releases before 3.11.13 and 3.12.11.

    Raises `DataError` that names the member that was refused, or the archive if it is damaged.
    """
    try:
        with tarfile.open(archive, "r:*") as tar:
            _extract(tar, archive, folder)
            # tar stops at its end mark, before the compressor's checksum: read on to check it
            while tar.fileobj is not None and tar.fileobj.read(_CHUNK):
                pass
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        if error.errno is not None:  # the disk's own trouble, not the archive's
            raise
        raise _damaged(archive, error) from error
    top = list(folder.iterdir())
    if not top:
        raise DataError(f"The archive {archive} is empty; expected a folder of data in it.")
    return top[0] if len(top) == 1 and top[0].is_dir() else folder


def _extract(tar: tarfile.TarFile, archive: Path, folder: Path) -> None:
    files: set[PurePosixPath] = set()
    for member in tar:
        path = PurePosixPath(member.name)
        if trouble := _trouble(member, path) or ("appears twice" if path in files else ""):
            raise DataError(
                f"The archive {archive} was refused: its member {member.name!r} {trouble}. "
                "Expected only files and folders with relative names; get the archive from a "
                "source that you trust."
            )
        if member.isreg():
            files.add(path)
        try:
            tar.extract(member, folder, set_attrs=False, filter="data")
        except (tarfile.FilterError, FileExistsError, NotADirectoryError, IsADirectoryError) as e:
            raise DataError(
                f"The archive {archive} was refused: its member {member.name!r} cannot be "
                f"unpacked ({e})."
            ) from e


def _trouble(member: tarfile.TarInfo, path: PurePosixPath) -> str:
    if path.is_absolute() or member.name.startswith("\\") or member.name[1:2] == ":":
        return "has an absolute name"
    if ".." in path.parts or ".." in member.name.split("\\"):
        return "leads out of its folder"
    if member.issym() or member.islnk():
        return f"is a link (to {member.linkname!r})"
    if not (member.isreg() or member.isdir()):
        return "is neither a file nor a folder"
    return ""


def _damaged(archive: Path, error: Exception) -> DataError:
    return DataError(
        f"The archive {archive} is damaged or not a tar archive ({error or type(error).__name__})."
    )
