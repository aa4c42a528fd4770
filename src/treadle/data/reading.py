"""From indices to samples: files are read and decoded once, or a bad one is left out."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from threading import Event, Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from treadle import __version__
from treadle.data.blocks import PixelBlock
from treadle.data.cache import PixelCache, fill, open_cache
from treadle.data.datasets import Dataset
from treadle.data.resize import Resize
from treadle.data.samples import PIXELS, Samples
from treadle.data.targets import resized
from treadle.data.transforms import Size
from treadle.errors import DataError

__all__ = ["MapDataset", "Reader", "Skipped", "Stopped"]

_PROBED = 8
"""So many pictures tell how large the others are."""


class MapDataset(Protocol):
    """What a `DataLoader` reads from: `len(dataset)`, and `dataset[i]` a tuple, inputs first."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that could not be read, and why."""

    index: int
    item: str
    reason: str


class Stopped(Exception):
    """Ends a worker's batch that nobody waits for."""


class Reader:
    """Reads samples of `dataset`, images and masks fitted by `resize` (None: at full size).

    `cache` is a kind of `open_cache`; it is opened when the first samples are read. With `skip`
    samples that cannot be read are left out and listed in `skipped`.
    """

    def __init__(self, dataset: MapDataset, resize: Resize | None, cache: str | None, skip: bool):
        self.dataset, self.resize, self.skip = dataset, resize, skip
        self.cache = cache
        self.skipped: list[Skipped] = []
        self.caches: dict[int, PixelCache] = {}
        self._opened, self._lock = cache is None or not isinstance(dataset, Dataset), Lock()
        self._known: dict[int, list[Any]] = {}  # elements that are no pixels, by place
        self._left: dict[int, int] = {}  # how many of them are unknown yet
        self._numbers: dict[int, NDArray[np.int64]] = {}  # those that are whole numbers, when known

    def read(self, indices: Sequence[int], stop: Event) -> Samples:
        """The samples `indices`, without those that were skipped: there may be none left."""
        if not isinstance(self.dataset, Dataset):
            return self._foreign(indices, stop)
        if not self._opened:
            self._open()
        columns = self._all_known(indices)
        if columns is None:
            good, rows = self._one_by_one(indices, stop)
            columns = [list(column) for column in zip(*rows, strict=True)]
            indices = good
        blocks = self.dataset.blocks
        return self._samples(indices, columns or [[] for _ in blocks], self.kinds)

    def _samples(
        self, indices: Sequence[int], columns: list[list[Any]], kinds: list[str | None]
    ) -> Samples:
        first = next((place for place, kind in enumerate(kinds) if kind in PIXELS), None)
        frames = [] if first is None else [value.shape[:2] for value in columns[first]]
        n_inp = self.n_inp_of(columns)
        return Samples(np.array(indices, np.int64), columns, kinds, frames, n_inp, self.name)

    def n_inp_of(self, sample: Sequence[Any]) -> int:
        """How many of the elements of a sample or batch are inputs."""
        known = getattr(self.dataset, "n_inp", None)
        return known if isinstance(known, int) else max(len(sample) - 1, 1)

    def name(self, index: int) -> str:
        """The item behind a sample, for messages: a file's path, mostly."""
        items = getattr(self.dataset, "items", None)
        return str(items[index]) if items is not None else f"sample {index}"

    # Samples of our own data sets

    def _all_known(self, indices: Sequence[int]) -> list[Any] | None:
        """The columns of samples that have all been read before, else None."""
        assert isinstance(self.dataset, Dataset)
        columns: list[Any] = []
        for place in range(len(self.dataset.blocks)):
            if (cache := self.caches.get(place)) is not None:
                found = cache.many(indices)
                if not all(found):
                    return None
                columns.append([pixels for pixels, _ in found])  # type: ignore[misc]
            elif (numbers := self._numbers.get(place)) is not None:
                columns.append(numbers[indices])
            elif (known := self._known.get(place)) is not None:
                column = [*map(known.__getitem__, indices)]
                if any(value is _UNKNOWN for value in column):
                    return None
                columns.append(column)
                self._gather_numbers(place)
            else:
                return None
        return columns

    def _gather_numbers(self, place: int) -> None:
        """Have an element that is known of all samples, and a whole number, as an array."""
        if self._left[place] <= 0:
            self._left[place] = len(self.dataset)  # one attempt: what is no number stays a list
            if all(type(value) is int for value in self._known[place]):
                self._numbers[place] = np.array(self._known[place], np.int64)

    def _one_by_one(
        self, indices: Sequence[int], stop: Event
    ) -> tuple[list[int], list[tuple[Any, ...]]]:
        good, rows = [], []
        for index in indices:
            if stop.is_set():
                raise Stopped
            try:
                rows.append(self._row(index))
                good.append(index)
            except Exception as error:
                self._failed(index, error)
        return good, rows

    def _row(self, index: int) -> tuple[Any, ...]:
        """The elements of one sample, fitted."""
        assert isinstance(self.dataset, Dataset)
        row: list[Any] = [None] * len(self.dataset.blocks)
        frame: Size | None = None
        for place, block in enumerate(self.dataset.blocks):
            if isinstance(block, PixelBlock):
                row[place], its_frame = self._pixels(place, index)
                frame = frame or its_frame
        for place, block in enumerate(self.dataset.blocks):
            if not isinstance(block, PixelBlock):
                row[place] = self._other(place, index, frame)
        return tuple(row)

    def _pixels(self, place: int, index: int) -> tuple[Any, tuple[int, int]]:
        cache = self.caches.get(place)
        if cache is not None and (found := cache.get(index)) is not None:
            return found
        pixels, frame = self._decoded(place, index)
        return (pixels if cache is None else cache.put(index, pixels, frame)), frame

    def _decoded(self, place: int, index: int) -> tuple[Any, tuple[int, int]]:
        """The pixels of a file, fitted, and the frame that they come from."""
        assert isinstance(self.dataset, Dataset)
        block: Any = self.dataset.blocks[place]
        goal = self.resize.fitted if self.resize else None
        pixels, frame = block.pixels(self.dataset.value(index, place), goal)
        if goal is not None:
            pixels = resized(block.kind, pixels, pixels.shape[:2], goal(frame))
        return pixels, frame

    def _other(self, place: int, index: int, frame: Any) -> Any:
        assert isinstance(self.dataset, Dataset)
        known = self._known.get(place)
        if known is not None and known[index] is not _UNKNOWN:
            return known[index]
        block = self.dataset.blocks[place]
        value = block.encode(self.dataset.value(index, place))
        if block.kind in ("points", "boxes"):
            if frame is None:
                raise DataError(
                    f"{block!r} gives places in an image, but the sample has no image to lie in."
                )
            if self.resize is not None:
                value = resized(block.kind, np.asarray(value), frame, self.resize.fitted(frame))
        if known is not None:
            known[index] = value
            self._left[place] -= 1
        return value

    def _failed(self, index: int, error: Exception) -> None:
        if not self.skip:
            error.add_note(f"While reading sample {index}: {self.name(index)}")
            raise error
        reason = " ".join(str(error).split()) or type(error).__name__
        with self._lock:
            if all(skipped.index != index for skipped in self.skipped):
                self.skipped.append(Skipped(index, self.name(index), reason))
                for cache in self.caches.values():
                    cache.leave_out(index)

    # Samples of any other data set

    def _foreign(self, indices: Sequence[int], stop: Event) -> Samples:
        good, rows = [], []
        for index in indices:
            if stop.is_set():
                raise Stopped
            try:
                rows.append(tuple(self.dataset[index]))
                good.append(index)
            except Exception as error:
                self._failed(index, error)
        if len({len(row) for row in rows}) > 1:
            raise DataError(
                f"The samples of a batch have {sorted({len(row) for row in rows})} elements; "
                "expected as many."
            )
        columns = [list(column) for column in zip(*rows, strict=True)]
        kinds: list[str | None] = []
        for place, column in enumerate(columns):
            plain = all(isinstance(v, Image.Image) and v.mode in ("RGB", "L") for v in column)
            kinds.append("image" if plain else None)
            columns[place] = [np.asarray(value) for value in column] if plain else column
        return self._samples(good, columns, kinds)

    # The caches

    @property
    def kinds(self) -> list[str | None]:
        """The kinds of the elements of our own data sets."""
        return [block.kind for block in getattr(self.dataset, "blocks", ())]

    @property
    def complete(self) -> bool:
        """Whether there is a cache for every picture, and all are in it."""
        pixels = [place for place, kind in enumerate(self.kinds) if kind in PIXELS]
        caches = [self.caches.get(place) for place in pixels]
        return bool(caches) and all(cache is not None and cache.complete for cache in caches)

    def fill(self, workers: int) -> None:
        """Decode all that the caches lack."""
        if not self._opened:
            self._open()
        for place, cache in self.caches.items():
            fill(cache, partial(self._decoded_or_skipped, place), workers)

    def _decoded_or_skipped(self, place: int, index: int) -> tuple[Any, tuple[int, int]] | None:
        try:
            return self._decoded(place, index)
        except Exception as error:
            self._failed(index, error)
            return None

    def _open(self) -> None:
        with self._lock:
            if not self._opened:
                self._open_each()
                self._opened = True

    def _open_each(self) -> None:
        assert isinstance(self.dataset, Dataset) and self.cache is not None
        n = len(self.dataset)
        for place, block in enumerate(self.dataset.blocks):
            if not isinstance(block, PixelBlock):
                self._known[place], self._left[place] = [_UNKNOWN] * n, n
                continue
            files = self._files(place)
            if files is None and self.resize is None:
                continue  # they are in memory as they are
            recipe = f"{block!r} {self.resize!r} {_made_by()}"
            opened = open_cache(self.cache, n, files, recipe, self._expected(place))
            if opened is not None:
                self.caches[place] = opened

    def _files(self, place: int) -> list[Any] | None:
        """The files of all pictures; None where some are none. A getter may be slow: one is asked
        first."""
        assert isinstance(self.dataset, Dataset)
        files = []
        for index in range(len(self.dataset)):
            value = self.dataset.value(index, place)
            if not isinstance(value, str | os.PathLike):
                return None
            files.append(value)
        return files

    def _expected(self, place: int) -> int:
        """About how many bytes the pictures of an element take."""
        n = len(self.dataset)
        sizes = []
        for index in _spread(n, _PROBED):
            try:
                sizes.append(self._pixels(place, index)[0].nbytes)
            except Exception:  # noqa: S112  it is told when the sample is read
                continue
        return int(n * np.mean(sizes)) if sizes else 0

    def close(self) -> None:
        """Let go of the caches."""
        for cache in self.caches.values():
            cache.close()


_UNKNOWN = object()


@functools.cache
def _made_by() -> str:
    """What else the pixels of a file depend on; another version may decode them otherwise."""
    others = " ".join(f"{name} {version(name)}" for name in ("pillow", "simplejpeg"))
    return f"treadle {__version__} {others}"


def _spread(n: int, count: int) -> Iterable[int]:
    return range(0, n, max(n // count, 1))
