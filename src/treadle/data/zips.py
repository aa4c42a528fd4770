"""The members of a zip archive, after a look at how they lie in it."""

from __future__ import annotations

import copy
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import IO

from treadle.data.unpacking import CHUNK, Unpacking

__all__ = ["unpack_zip"]

_ENCRYPTED = 0x1
_LOCAL = struct.Struct("<26xHH")  # a local header: at its end the sizes of name and extra


def unpack_zip(stream: IO[bytes], into: Unpacking) -> None:
    """Hand every member of the zip archive `stream` to `into`.

    Members that share bytes are refused (D. Fifield, A better zip bomb, 2019,
    https://www.bamsoftware.com/hacks/zipbomb/), as are such that hold more or less than they
    declare.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            for info in members:
                into.enter(info.orig_filename)
                _check(info, into)
            into.expect(sum(info.file_size for info in members))
            _check_places(members, stream, archive.start_dir, into)
            for info in members:
                into.member = info.filename
                _unpack_member(archive, info, into)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error) as error:
        into.damaged(error)
    except (ValueError, IndexError, OverflowError, NotImplementedError) as error:
        into.damaged(f"{type(error).__name__}: {error}")


def _check(info: zipfile.ZipInfo, into: Unpacking) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if stat.S_ISLNK(kind):
        into.refuse("is a link")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        into.refuse("is neither a file nor a folder")
    if info.flag_bits & _ENCRYPTED:
        into.refuse("is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        into.refuse(f"is compressed by method {info.compress_type}; expected none or deflate")


def _check_places(
    members: list[zipfile.ZipInfo], stream: IO[bytes], end: int, into: Unpacking
) -> None:
    """Refuse members that share bytes with one another or with the directory at `end`."""
    spans = []
    for info in members:
        head = b""
        if 0 <= info.header_offset < end:
            stream.seek(info.header_offset)
            head = stream.read(_LOCAL.size)
        if len(head) < _LOCAL.size or not head.startswith(b"PK\x03\x04"):
            into.damaged(f"member {info.filename!r} is not where the directory says")
        name, extra = _LOCAL.unpack(head)
        size = _LOCAL.size + name + extra + info.compress_size
        spans.append((info.header_offset, info.header_offset + size, info.orig_filename))
    spans.sort()
    for (_, reach, _), (start, _, name) in pairwise([*spans, (end, end, "")]):
        if reach > start:
            into.member = name or spans[-1][2]
            into.refuse("shares bytes with another one: an archive bomb")


def _unpack_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, into: Unpacking) -> None:
    if info.is_dir():
        into.add_folder(info.filename)
        return
    size = into.add_file(info.filename, _body(archive, info, into))
    if size != info.file_size:
        into.refuse(f"declares {info.file_size} bytes and holds {size}")


def _body(archive: zipfile.ZipFile, info: zipfile.ZipInfo, into: Unpacking) -> Iterator[bytes]:
    unbounded = copy.copy(info)  # zipfile stops at the declared size: see what is really there
    unbounded.file_size = 1 << 62
    left = info.file_size + 1
    with archive.open(unbounded) as file:
        while chunk := file.read(min(left, CHUNK)):
            left -= len(chunk)
            into.grow(len(chunk))
            if left == 0:
                into.refuse(f"declares {info.file_size} bytes and holds more")
            yield chunk
