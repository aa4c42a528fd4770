"""A cache on the disk that is whole: its format, its opening, its pictures.

A folder with three files: `pixels.bin`, one picture after the other; `index.npy`, one record for
each picture (`RECORD`); `manifest.json`, which says how large the first and what the SHA-256 of the
second is. Nothing in them is code.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.data.cache.base import Frame, Pixels
from treadle.data.cache.folders import Hold, is_folder, sync

__all__ = ["PIXELS", "RECORD", "Damaged", "Stored", "key_of", "shape_of", "write_index"]

SCHEMA = 1
PIXELS, INDEX, MANIFEST = "pixels.bin", "index.npy", "manifest.json"

RECORD = np.dtype(
    [
        ("offset", "<i8"),  # where the picture begins in pixels.bin
        ("height", "<i4"),  # 0 for a picture that was left out
        ("width", "<i4"),
        ("channels", "<i4"),
        ("frame_height", "<i4"),
        ("frame_width", "<i4"),
        ("crc", "<u4"),  # CRC-32 of the pixels
    ]
)


class Damaged(Exception):
    """A cache that is not what its writer left; the message is a clause."""


class Stored:
    """The cache in `folder`, mapped into memory: processes that read it share its pages.

    Each picture's CRC-32 is checked when it is read for the first time. Raises `Damaged`, then and
    when the folder is opened. To be made under `locked`.
    """

    def __init__(self, folder: Path, n: int) -> None:
        if not is_folder(folder):
            raise Damaged("it is no folder")
        try:
            self._hold = Hold(folder, alone=False)
            self._file = _identity(folder)
            manifest = _manifest(folder / MANIFEST)
            data = (folder / INDEX).read_bytes()
            nbytes = (folder / PIXELS).stat().st_size
        except OSError as error:
            raise Damaged(f"{error.filename or folder}: {error.strerror}") from error
        expected = {"schema": SCHEMA, "key": folder.name, "n": n, "nbytes": nbytes}
        for name, value in {**expected, "index": hashlib.sha256(data).hexdigest()}.items():
            if manifest.get(name) != value:
                told = manifest.get(name)
                raise Damaged(f"its manifest says {name} {told!r} where {value!r} is found")
        self.folder, self.nbytes = folder, nbytes
        self._index = _index(data, n, nbytes)
        self._checked = bytearray(n)
        self._pixels = _mapped(folder / PIXELS, nbytes)

    def get(self, index: int) -> tuple[Pixels, Frame] | None:
        """The picture, read-only, and its frame; None if it was left out."""
        offset, height, width, channels, *frame, crc = self._index[index].item()
        if not height:
            return None
        shape = shape_of(height, width, channels)
        pixels: Pixels = np.ndarray(shape, np.uint8, self._pixels, offset)
        if not self._checked[index]:
            if zlib.crc32(pixels.data) != crc:
                raise Damaged(f"the pixels of picture {index} are not those that were written")
            self._checked[index] = 1
        return pixels, (frame[0], frame[1])

    def is_there(self) -> bool:
        """Whether the folder is still the one that was opened."""
        try:
            return _identity(self.folder) == self._file
        except OSError:
            return False


def key_of(files: Iterable[str | os.PathLike[str]], recipe: str) -> str:
    """SHA-256 over the schema, the recipe, and each file's path, size and time of change (ns).

    A file that is missing counts as such: the error is told by whoever comes to read it.
    """
    digest = hashlib.sha256(f"treadle pictures {SCHEMA}\0{recipe}\0".encode())
    here = os.getcwd()  # noqa: PTH109
    for path in files:  # there may be a million: strings, and no Path of each
        name = os.path.join(here, path)  # noqa: PTH118
        try:
            found = os.stat(name)  # noqa: PTH116
            state = f"\0{found.st_size}\0{found.st_mtime_ns}\0"
        except OSError:
            state = "\0missing\0"
        digest.update(os.fsencode(name + state))
    return digest.hexdigest()


def shape_of(height: int, width: int, channels: int) -> tuple[int, ...]:
    """The shape of a picture's array."""
    return (height, width) if channels == 1 else (height, width, channels)


def write_index(folder: Path, key: str, index: NDArray[Any], nbytes: int) -> None:
    """Write index and manifest beside the pixels, and wait until the disk has them."""
    stream = io.BytesIO()
    np.save(stream, index, allow_pickle=False)
    digest = hashlib.sha256(stream.getvalue()).hexdigest()
    manifest = {"schema": SCHEMA, "key": key, "n": len(index), "nbytes": nbytes, "index": digest}
    _write(folder / INDEX, stream.getvalue())
    _write(folder / MANIFEST, json.dumps(manifest).encode())
    sync(folder)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _identity(folder: Path) -> tuple[int, int]:
    found = (folder / MANIFEST).stat()
    return found.st_dev, found.st_ino


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path.name} is not JSON ({error})") from error
    if not isinstance(manifest, dict):
        raise Damaged(f"{path.name} holds no table")
    return manifest


def _index(data: bytes, n: int, nbytes: int) -> NDArray[Any]:
    """The records, all of which lie within the pixels: no reading beyond the mapped file."""
    try:
        index = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise Damaged(f"{INDEX} cannot be read ({error})") from error
    if not isinstance(index, np.ndarray) or index.dtype != RECORD or index.shape != (n,):
        raise Damaged(f"{INDEX} holds something else")
    offset, height, width, channels = (
        index[name] for name in ("offset", "height", "width", "channels")
    )
    size = height.astype(np.float64) * width * channels  # exact where it fits, and never wraps
    fits = (offset >= 0) & (offset <= nbytes - size)
    sound = (height > 0) & (width > 0) & np.isin(channels, (1, 3)) & fits
    if not np.all(sound | (height == 0)):
        raise Damaged(f"{INDEX} names pixels that are not there")
    return index


def _mapped(path: Path, nbytes: int) -> mmap.mmap | bytes:
    if not nbytes:  # all were left out; an empty file cannot be mapped
        return b""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_READ)
