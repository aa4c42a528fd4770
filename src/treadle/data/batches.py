"""Batches that others make: of any shape, from whatever gives them."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DistributedSampler, IterableDataset, default_collate

from treadle.data.columns import Columns
from treadle.data.dealing import dealt, given, part_of
from treadle.data.loaders import default_device
from treadle.data.permutation import Indices
from treadle.errors import DataError, UsageError
from treadle.interrupts import undivided
from treadle.world import world

__all__ = ["Batches", "Stream", "as_tensors", "described", "has_distributed_sampler"]


_REAPED_S = 1.0
"""A process that is gone is known to be so within this many seconds."""


class Batches:
    """The batches of `source`, as tuples of tensors on `device`.

    A batch may be a tuple, a dict (see `columns`), or one tensor; NumPy arrays become tensors,
    float64 torch's default float, integers int64 (uint8 stays); tensors deeper in dicts, lists and
    tuples move along; anything else stays as it is.

    `len()` is `n_iter`, or what the source says. An epoch is a pass over the source, of `n_iter`
    batches if given. An iterator goes on where it was. Attributes that are not here (`dataset`,
    `batch_size`, `sampler`) are the source's.

    Of several processes all draw every batch, with the same random numbers, and each takes its part
    of the samples: the source's batch is that of all together. With `sharded` the source gives each
    process batches of its own; they need not be as many. Either way `total`, `borrowed` and
    `total_bs` are as those of `DataLoader`, and `indices` are places in the pass. A torch loader
    with a `DistributedSampler` is `sharded`; its `set_epoch` is left to the caller.

    Raises `UsageError` where the length is asked for and nobody knows it, and `DataError` where the
    source ends before `n_iter` batches.
    """

    def __init__(
        self,
        source: Any,
        columns: Columns,
        n_iter: int | None = None,
        device: torch.device | str | None = None,
        sharded: bool = False,
    ) -> None:
        if n_iter is not None and n_iter < 1:
            raise UsageError(f"n_iter={n_iter!r}: expected a positive number of batches.")
        self.source, self.columns, self.n_iter = source, columns, n_iter
        self.device = default_device() if device is None else torch.device(device)
        self._ahead: list[Any] = []  # of an iterator, what `one_batch` has looked at
        self.world, self.sharded = world(), sharded
        self.indices: Indices = np.empty(0, np.int64)
        self.total, self.borrowed = 0, False
        self._even = has_distributed_sampler(source)
        self._longest: int | None = None
        if sharded and not self._even:
            self._longest = self._most_batches()

    def _most_batches(self) -> int | None:
        """How many batches the process has that has most, if all know."""
        lengths = self.world.all(len(self) if self._has_length else None)
        return None if None in lengths else max(n or 0 for n in lengths)

    def __len__(self) -> int:
        known = self.n_iter or self._longest
        if known is not None:
            return known
        try:
            return len(self.source)
        except TypeError:
            raise NoLengthError(
                f"{described(self.source)} does not say how many batches an epoch has, and "
                "schedules have to know. Give adapt(source, n_iter=...) in its place."
            ) from None

    @property
    def n_inp(self) -> int | None:
        """How many elements of a batch are inputs, where that is known."""
        known: int | None = self.columns.n_inp or getattr(self.source, "n_inp", None)
        return known

    @property
    def bs(self) -> int | None:
        """Samples a batch in this process, at most, where the source tells."""
        own, size = self._own_bs, 1 if self.sharded else self.world.size
        return None if own is None else -(-own // size)

    @property
    def total_bs(self) -> int | None:
        """Samples a batch in all processes, where the source tells."""
        own, size = self._own_bs, self.world.size if self.sharded else 1
        return None if own is None else own * size

    @property
    def _own_bs(self) -> int | None:
        size: int | None = getattr(self.source, "bs", None)
        return size or getattr(self.source, "batch_size", None)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        count, least = 0, self.n_iter or int(self._is_iterator)
        mine = map(self._made, self._raw()) if self.world.size == 1 else self._shared()
        for batch in islice(mine, self.n_iter):
            yield batch
            count += 1
        if count < least:
            raise DataError(self._too_few(count))

    def _shared(self) -> Iterator[tuple[Any, ...]]:
        """What this process has of each batch."""
        batches = (self._parts(batch) for batch in self._raw())
        name, known = described(self.source), self.n_iter is not None or self._has_length
        for share in (
            given(batches, self.world, self._even, name)
            if self.sharded
            else dealt(batches, self.world, known, name)
        ):
            elements, self.indices, self.total, self.borrowed = share
            yield as_tensors(elements, self.device)

    def _too_few(self, count: int) -> str:
        of = f" of n_iter={self.n_iter}" if self.n_iter else ""
        said = f"{described(self.source)} ended after {count}{of} batches."
        if self._is_iterator:
            said += (
                " An iterator is read once; for several epochs give the function that makes it, "
                "or a list."
            )
        return said

    def one_batch(self) -> tuple[Any, ...]:
        """A first batch. An iterator hands it out once more, in the epoch that comes."""
        batches = self._raw()
        batch = next(batches, None)
        if batch is None:
            raise DataError(f"There is no batch: {described(self.source)} has none.")
        if self._is_iterator:
            self._ahead.append(batch)
        elements = self._parts(batch)
        if self.world.size > 1 and not self.sharded:
            elements = part_of(elements, self.world, described(self.source)).elements
        made: tuple[Any, ...] = as_tensors(elements, self.device)
        return made

    def to(self, device: torch.device | str) -> Batches:
        """Put the following batches on `device`; returns the loader itself."""
        self.device = torch.device(device)
        return self

    @property
    def _is_iterator(self) -> bool:
        return isinstance(self.source, Iterator)

    def _raw(self) -> Iterator[Any]:
        """The batches as the source gives them."""
        while self._ahead:
            yield self._ahead.pop()
        is_function = not isinstance(self.source, Iterable)
        batches = iter(self.source() if is_function else self.source)
        try:
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except (RuntimeError, OSError) as error:
                    _tell_of_workers(batches, error)
                    raise
                yield batch
        finally:
            _end_workers(batches)

    @property
    def _has_length(self) -> bool:
        """Whether the source says how many batches it has, and keeps to it: a stream's length is
        often a guess."""
        stream = isinstance(getattr(self.source, "dataset", None), IterableDataset)
        return hasattr(self.source, "__len__") and not stream and not self._is_iterator

    def _parts(self, batch: Any) -> tuple[Any, ...]:
        return tuple(as_tensors(part) for part in self.columns.parts(batch))

    def _made(self, batch: Any) -> tuple[Any, ...]:
        return tuple(as_tensors(part, self.device) for part in self.columns.parts(batch))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)


class Stream:
    """A stream of samples as batches of `bs`: an `IterableDataset`, read in the caller.

    Images are float32 (B, C, H, W) in [0, 1], as those of `DataLoader`.
    """

    def __init__(self, source: Iterable[Any], bs: int, columns: Columns) -> None:
        if bs < 1:
            raise UsageError(f"bs={bs!r}: expected a positive number of samples.")
        self.source, self.bs, self.columns = source, bs, columns
        self.epoch = 0
        self.dataset = source

    @property
    def n_inp(self) -> int | None:
        """How many elements of a sample are inputs, where that is known."""
        return self.columns.n_inp

    def __len__(self) -> int:
        n: int = len(self.source)  # type: ignore[arg-type]
        return -(-n // self.bs)

    def __iter__(self) -> Iterator[Any]:
        if hasattr(self.source, "set_epoch"):  # a shuffled stream has an order for each
            self.source.set_epoch(self.epoch)
        self.epoch += 1
        samples = (_sample(self.columns.parts(row)) for row in self.source)
        while chunk := list(islice(samples, self.bs)):
            yield default_collate(chunk)


def as_tensors(value: Any, device: torch.device | None = None) -> Any:
    """`value` with its NumPy arrays as tensors and all tensors on `device`, also those in tuples,
    lists and dicts."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        value = _tensor_of(np.asarray(value))
    if isinstance(value, torch.Tensor):
        return value if device is None else value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: as_tensors(one, device) for key, one in value.items()}
    if isinstance(value, tuple | list):
        made = [as_tensors(one, device) for one in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    return value


def _tensor_of(array: Any) -> torch.Tensor:
    # a view where torch can have one: of memory that is writable and goes forwards
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if tensor.dtype == torch.float64:
        return tensor.to(torch.get_default_dtype())
    keeps = tensor.is_floating_point() or tensor.dtype in (torch.uint8, torch.bool)
    return tensor if keeps else tensor.long()


def _sample(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_element(part) for part in parts)


def _element(value: Any) -> Any:
    if isinstance(value, Image.Image):
        pixels = np.asarray(value)
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        return torch.from_numpy(np.require(pixels, np.float32, ["C", "W"])) / 255
    if isinstance(value, float):
        return torch.tensor(value)
    return as_tensors(value)


def has_distributed_sampler(source: Any) -> bool:
    """Whether it is a loader of torch that gives each process its own part, all as many."""
    holders = source, getattr(source, "batch_sampler", None)
    return any(isinstance(getattr(it, "sampler", None), DistributedSampler) for it in holders)


def described(source: Any) -> str:
    """What messages call `source`."""
    if isinstance(source, Stream):
        return described(source.source)
    if isinstance(source, type):
        return f"The class {source.__name__}"
    name = getattr(source, "__name__", None)
    kind = type(source).__name__
    article = "An" if kind[0] in "AEIOUaeiou" else "A"
    return f"The {kind} {name}" if isinstance(name, str) else f"{article} {kind}"


@undivided
def _end_workers(batches: Any) -> None:
    """End the processes of torch's loader now, and not when the last traceback is gone that holds
    on to it; unless they are to stay for the next epoch."""
    if not getattr(batches, "_persistent_workers", True):
        getattr(batches, "_shutdown_workers", _nothing)()


def _nothing() -> None:
    pass


def _tell_of_workers(batches: Any, error: Exception) -> None:
    """Raise `DataError` from `error` if a signal has ended a worker process of torch's loader."""
    workers = getattr(batches, "_workers", ())
    deadline = time.monotonic() + _REAPED_S
    while workers and time.monotonic() < deadline:
        ended = next((worker for worker in workers if (worker.exitcode or 0) < 0), None)
        if ended is not None:
            number = -ended.exitcode
            why = " The system does that when memory runs short." if number == 9 else ""
            raise DataError(
                f"Worker process {ended.pid} of the loader was ended by signal {number} "
                f"({signal.Signals(number).name}).{why} num_workers=0 reads without processes."
            ) from error
        time.sleep(0.02)


class NoLengthError(UsageError, TypeError):
    """What `len()` of an object without a length raises is a TypeError: `list()` goes by it."""
