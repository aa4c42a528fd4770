"""A cache on the disk that is being written, in a folder that is not yet in its place."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import weakref
import zlib
from pathlib import Path

import numpy as np

from treadle.data.cache.base import Frame, Pixels
from treadle.data.cache.folders import Hold, unfinished_name
from treadle.data.cache.stored import PIXELS, RECORD, Damaged, shape_of, write_index

__all__ = ["Filling"]


class Filling:
    """Pictures as they come, written one after the other; any may be read back at once.

    `most` bytes may be written. To be made under `locked`: a folder that nobody holds counts as
    dead. The files stay open until this object is gone, not only until `discard`: a thread may yet
    be writing, and the number of a closed file can be that of another one.
    """

    def __init__(self, root: Path, key: str, n: int, most: int) -> None:
        self.key, self.n, self.most = key, n, most
        self.folder = root / unfinished_name(key)
        self.filled = self.nbytes = self._seen = self._seen_bytes = 0
        self._claimed, self._done = bytearray(n), bytearray(n)
        self._index = np.zeros(n, RECORD)
        self._lock = threading.Lock()
        self._process = os.getpid()
        self.folder.mkdir()
        weakref.finalize(self, _discard, self.folder, self._process)
        self.hold = Hold(self.folder, alone=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self._file = os.open(self.folder / PIXELS, flags, 0o666)
        weakref.finalize(self, os.close, self._file)

    def get(self, index: int) -> tuple[Pixels, Frame] | None:
        """The picture as it was written, or None."""
        if not self._done[index]:
            return None
        offset, height, width, channels, *frame, _ = self._index[index].item()
        if not height:
            return None
        size = height * width * channels
        data = os.pread(self._file, size, offset)
        if len(data) != size:
            raise Damaged(f"{PIXELS} was cut while it was written")
        pixels = np.frombuffer(data, np.uint8).reshape(shape_of(height, width, channels))
        return pixels, (frame[0], frame[1])

    def put(self, index: int, pixels: Pixels, frame: Frame) -> bool:
        """Write the picture, if it is the first of this index; True if now all are done.

        Raises `OSError` where it does not fit on the disk or below the limit.
        """
        offset = self._claim(index, pixels.nbytes)
        if offset is None:
            return False
        try:
            _write_at(self._file, pixels, offset)
            channels = 1 if pixels.ndim == 2 else pixels.shape[2]
            crc = zlib.crc32(pixels.data)
            self._index[index] = (offset, *pixels.shape[:2], channels, *frame, crc)
        except BaseException:  # an interrupt too: the next call may write it
            self._let_go(index, offset, pixels.nbytes)
            raise
        return self._count(index)

    def leave_out(self, index: int) -> bool:
        """Count the picture as done without pixels; True if now all are done."""
        return self._claim(index, 0) is not None and self._count(index)

    def still_needed(self) -> int:
        """The bytes of the rest, if it is as what has come, and of the index."""
        rest = self._seen_bytes * (self.n - self.filled) // max(self._seen, 1)
        return rest + self._index.nbytes

    def write_index(self) -> None:
        """Make the folder whole, on the disk too: it takes as long as the disk needs."""
        os.ftruncate(self._file, self.nbytes)  # a part of a picture may lie behind the last one
        os.fsync(self._file)
        write_index(self.folder, self.key, self._index, self.nbytes)

    def discard(self) -> None:
        """Remove the folder."""
        _discard(self.folder, self._process)

    def _claim(self, index: int, size: int) -> int | None:
        """The place of `size` bytes for this picture; None if another thread was first.

        A forked child has its own count of the parent's file, and must not write to it. Raises
        `OSError` where the limit is reached.
        """
        if os.getpid() != self._process:
            return None
        with self._lock:
            if self._claimed[index]:
                return None
            self._seen, self._seen_bytes = self._seen + 1, self._seen_bytes + size
            offset = self.nbytes
            if size and offset + size > self.most:
                raise OSError(errno.EDQUOT, "the limit of all caches is reached")
            self._claimed[index] = 1
            self.nbytes += size
        return offset

    def _let_go(self, index: int, offset: int, size: int) -> None:
        with self._lock:
            self._claimed[index] = 0
            if self.nbytes == offset + size:  # else others have begun behind it, and a hole stays
                self.nbytes = offset

    def _count(self, index: int) -> bool:
        with self._lock:
            self._done[index] = 1
            self.filled += 1
            return self.filled == self.n


def _write_at(file: int, pixels: Pixels, offset: int) -> None:
    rest = pixels.reshape(-1).data
    while rest:  # a disk that is nearly full takes a part, and tells at the next call
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written


def _discard(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked child that ends leaves its parent's folder alone
        shutil.rmtree(folder, ignore_errors=True)
