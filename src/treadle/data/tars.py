"""The members of a tar archive, read once from front to end."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, cast

from treadle.data.unpacking import CHUNK, Unpacking

__all__ = ["unpack_tar"]

_BLOCK = 512
_LONGEST_HEADER = 1 << 20  # bytes of a long name or of PAX records


def unpack_tar(stream: IO[bytes], into: Unpacking) -> None:
    """Hand every member of the (decompressed) tar `stream` to `into`.

    The whole stream is read, so that the compressor's own checksum is compared as well. The end
    mark must be there, and nothing after it: `tarfile` alone takes a header that it cannot read
    for the end, and so drops the rest without a word.
    """
    source = _Forward(stream, into)
    try:
        with tarfile.TarFile(fileobj=cast("IO[bytes]", source), mode="r") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or a million are kept for nothing
                _unpack_member(member, source, into)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        into.damaged(error)
    if len(source.block) < _BLOCK:
        into.damaged("it is cut off: its end mark is missing")
    if any(source.block):
        into.damaged("a header cannot be read")
    while block := source.read(CHUNK):
        if any(block):
            into.damaged("there are data after its end mark")


def _unpack_member(member: tarfile.TarInfo, source: _Forward, into: Unpacking) -> None:
    into.enter(member.name)
    if member.issym() or member.islnk():
        into.refuse(f"is a link (to {member.linkname!r})")
    if member.issparse() or member.type == tarfile.GNUTYPE_SPARSE:
        into.refuse("is a sparse file, whose size is not that of its data")
    if not (member.isreg() or member.isdir()):
        into.refuse("is neither a file nor a folder")
    if member.isdir():
        into.add_folder(member.name)
        return
    if member.size < 0:
        into.refuse(f"has a size of {member.size} bytes")
    into.expect(member.size)
    into.add_file(member.name, _body(member, source, into))


def _body(member: tarfile.TarInfo, source: _Forward, into: Unpacking) -> Iterator[bytes]:
    source.seek(member.offset_data)
    left = member.size
    while left:
        chunk = source.read(min(left, CHUNK))
        if not chunk:
            into.damaged("it is cut off within that member")
        left -= len(chunk)
        yield chunk


class _Forward:
    """What `tarfile` reads from: counts each byte for `into`, and never goes back.

    `block` is what was read last: at the end, what `tarfile` took for the end.
    """

    def __init__(self, stream: IO[bytes], into: Unpacking) -> None:
        self._stream, self._into, self._at = stream, into, 0
        self.block = b""

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:  # a forged header that asks for a long name
            self._into.damaged(f"a header announces {size} bytes of names")
        self.block = self._stream.read(size)
        self._at += len(self.block)
        self._into.grow(len(self.block))
        return self.block

    def seek(self, position: int) -> int:
        if position < self._at:
            self._into.damaged("a header announces a negative size")
        while self._at < position and self.read(min(CHUNK, position - self._at)):
            pass
        return self._at
