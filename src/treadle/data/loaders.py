"""Batches: read by threads, augmented, the same for any number of workers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from threading import Event
from typing import Any

import numpy as np
import torch

from treadle.data.ahead import on_device
from treadle.data.draws import Draws
from treadle.data.making import Made, Maker, Task, resize_of
from treadle.data.order import Order, as_order, occurrences
from treadle.data.permutation import Indices
from treadle.data.pipeline import Transforms, decoded, listed
from treadle.data.reading import MapDataset, Reader, Skipped
from treadle.data.sharing import has_part, own_places
from treadle.data.workers import Stalled, closed_at_exit, default_workers, in_order
from treadle.errors import DataError, UsageError
from treadle.interrupts import undivided
from treadle.world import local_rank, world

__all__ = ["Batch", "DataLoader", "default_device"]

Batch = tuple[torch.Tensor, ...]

_AHEAD = 1 << 13
"""So many samples of an order are looked up at once."""


def default_device() -> torch.device:
    """The GPU if there is one (CUDA, else Apple's), else the CPU."""
    if torch.cuda.is_available():
        # asking for the current one takes the GPU into use, and that process cannot be forked
        started = torch.cuda.is_initialized()
        return torch.device("cuda", torch.cuda.current_device() if started else local_rank())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class DataLoader:
    """Batches of `dataset` on `device`: tuples of tensors, the first axis of each the samples'.

    Images arrive as float32 (B, C, H, W) in [0, 1] (uint8 is divided by 255), then `batch_tfms`
    change them; `item_tfms` change the single images before. Both act on the inputs of a sample
    (the first `dataset.n_inp`, or all but the last); targets that are masks, points, boxes or
    images are moved and resized with them, and otherwise left alone.

    - `bs`: samples a batch; of several processes (see `treadle.world`) each makes so many of every
      batch. `global_bs` in its place says how many all of them make together: their parts are
      alike, or differ by one. `drop_last` leaves out a last batch that would be smaller, except
      when it is the only one.
    - `shuffle`: another order each epoch. `sampler`: an `Order` instead, such as `Weighted(...)`.
      `augment`: transforms draw random numbers; None means if there is `shuffle` or a `sampler`.
    - `num_workers`: threads that build batches ahead; 0 builds them in the caller; None means the
      CPUs at hand, at most 8. One that is at a single sample for 300 seconds is an error.
    - `seed`: with the epoch it determines order and augmentation, whatever `num_workers`, `cache`
      and `bs` are. None draws one from torch's global generator, so `torch.manual_seed` before this
      makes everything reproducible.
    - `device`: None means `default_device()`.
    - `cache`: where decoded images are kept, as the first `Resize` fits them, so that each file is
      read once: "memory", "disk" (shared by processes, found again by the next run), "device" (all
      on the GPU), "auto" (memory if half of what is free suffices, else the disk), None (nowhere:
      files and labels are read anew each time). Only samples of a `DataBlock` are kept.
    - `on_error`: "raise" what goes wrong in reading a sample, or "skip" the sample: its batch is
      smaller, and `skipped` lists it.

    Attributes beside these: `n` samples an epoch, `epoch` (the one that the next `iter` draws;
    every `iter` advances it), `total_bs` (samples a batch in all processes), `world` (the processes
    that share the batches; assign `World()` to have this one read all of them). Of the batch handed
    out last: `indices` (into the data set), `total` (its samples in all processes), `borrowed`
    (this process has no part of it, and was given a sample of another's that counts for nothing).

    >>> x = torch.arange(6.0)[:, None]
    >>> loader = DataLoader(torch.utils.data.TensorDataset(x, x), bs=4, device="cpu")
    >>> [len(xb) for xb, yb in loader], len(loader), loader.epoch
    ([4, 2], 2, 1)
    """

    def __init__(
        self,
        dataset: MapDataset,
        bs: int = 64,
        shuffle: bool = False,
        drop_last: bool = False,
        *,
        global_bs: int | None = None,
        sampler: Order | None = None,
        augment: bool | None = None,
        item_tfms: Transforms = None,
        batch_tfms: Transforms = None,
        num_workers: int | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
        cache: str | None = "auto",
        on_error: str = "raise",
    ) -> None:
        _check(bs, global_bs, num_workers, on_error)
        self.world = world()  # before anything is drawn
        self.dataset, self.drop_last = dataset, drop_last
        self.global_bs, self._bs = global_bs, bs
        self.sampler = as_order(sampler, shuffle).of(dataset)
        self.augment = (shuffle or sampler is not None) if augment is None else augment
        self.item_tfms, self.batch_tfms = listed(item_tfms), listed(batch_tfms)
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.seed = int(torch.randint(2**63 - 1, ()).item()) if seed is None else seed
        self.device = default_device() if device is None else torch.device(device)
        self.cache, self.on_error = cache, on_error
        self.epoch = 0
        self.indices: Indices = np.empty(0, np.int64)
        self.total, self.borrowed = 0, False
        self.reader = Reader(dataset, resize_of(self.item_tfms), cache, on_error == "skip")
        self.maker = Maker(self.reader, self.item_tfms, self.batch_tfms, self.num_workers)
        self._start = 0  # the batch that the next `iter` begins with
        self._under_way: tuple[int, int] | None = None  # epoch, batches handed out

    @property
    def bs(self) -> int:
        """How many samples a batch has in this process, at most."""
        return self._bs if self.global_bs is None else -(-self.global_bs // self.world.size)

    @property
    def total_bs(self) -> int:
        """How many samples a batch has in all processes together."""
        return self._bs * self.world.size if self.global_bs is None else self.global_bs

    @property
    def n(self) -> int:
        """How many samples an epoch has."""
        return self.sampler.size(len(self.dataset))

    @property
    def skipped(self) -> list[Skipped]:
        """The samples that could not be read so far (`on_error="skip"`)."""
        return self.reader.skipped

    def __len__(self) -> int:
        if self.drop_last and self.n >= self.total_bs:
            return self.n // self.total_bs
        return -(-self.n // self.total_bs)

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self.epoch, self._start
        self.epoch, self._start = epoch + 1, 0
        return closed_at_exit(self._batches(epoch, start))

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        if self.cache == "device" and self.device.type != "cpu":
            self.maker.settle(self.device)
        made = in_order(self._make, self._tasks(epoch, start), self.num_workers)
        numbered = (((count, m), m.elements) for count, m in enumerate(made, start + 1))
        there = on_device(numbered, self.device)
        n = self.n
        try:
            for (count, batch), elements in there:
                self._under_way, self.indices = (epoch, count), batch.indices
                self.total = min(n - (count - 1) * self.total_bs, self.total_bs)
                self.borrowed = not has_part(self.total, self.world)
                if self.on_error == "raise":
                    yield self._finished(batch, elements)
                elif (what_is_left := self._without_skipped(batch, elements, epoch)) is not None:
                    yield what_is_left
        except Stalled as stalled:
            raise self._explained(stalled) from stalled
        finally:
            self._end_epoch(there, numbered, made)

    def _explained(self, stalled: Stalled) -> DataError:
        task: Task = stalled.task
        index = int(task.indices[min(max(stalled.begun, 1), len(task.indices)) - 1])
        return DataError(
            f"Sample {index} does not come: {self.item_name(index)}. {stalled} See what it waits "
            "for (a network folder, a lock), or leave it out."
        )

    @undivided
    def _end_epoch(self, *generators: Any) -> None:
        self._under_way = None
        for generator in generators:  # no thread is left behind
            generator.close()

    def _tasks(self, epoch: int, start: int = 0) -> Iterator[Task]:
        drawn, n, total_bs = self._drawn(epoch), self.n, self.total_bs
        own = own_places(total_bs, self.world)
        many, whole = max(_AHEAD // len(own), 1), min(n // total_bs, len(self))
        for k in range(start, whole, many):
            places = np.arange(k, min(k + many, whole))[:, None] * total_bs + own
            for indices, addresses in zip(*drawn(places), strict=True):
                yield Task(epoch, indices, addresses)
        if max(start, whole) < len(self):
            left = own_places(n - whole * total_bs, self.world)
            yield Task(epoch, *drawn(whole * total_bs + left))

    def _drawn(self, epoch: int) -> Callable[[Indices], tuple[Indices, Indices]]:
        """A function of places in the epoch: which samples are there, and their addresses."""
        n = len(self.dataset)
        if not self.sampler.repeats:
            lookup = self.sampler.lookup(self.seed, epoch, n)
            return lambda places: (lookup(places),) * 2
        order = self.sampler.order(self.seed, epoch, n)
        # a sample that comes again in an epoch is augmented anew
        addresses = order + n * occurrences(order)
        return lambda places: (order[places], addresses[places])

    def _make(self, task: Task, stop: Event) -> Made:
        """In a worker: the batch in the host's memory, or ready if that is where it stays."""
        threads = 1 if self.num_workers else torch.get_num_threads()
        on_cpu = self.device.type == "cpu"
        made = self.maker.make(task, self._draws(task), on_cpu, threads, stop)
        if self.device.type == "cuda":  # from pinned memory copies overlap with the GPU's work
            made.elements = [element.pin_memory() for element in made.elements]
        return made

    def _finished(self, made: Made, elements: list[torch.Tensor]) -> Batch:
        made.elements = elements
        return tuple(self.maker.finished(made).elements)

    def _without_skipped(
        self, made: Made, elements: list[torch.Tensor], epoch: int
    ) -> Batch | None:
        """What is left of a batch whose samples may have been skipped; None if in no process
        anything is. Where this one has nothing left, the first sample that another has stands in.
        """
        mine = made.indices.tolist()
        parts = self.world.all([] if self.borrowed else mine)
        self.total = sum(map(len, parts))
        if not self.total:
            return None
        if mine:
            return self._finished(made, elements)
        self.indices, self.borrowed = np.array(next(filter(None, parts))[:1]), True
        return self.batch_of(self.indices.tolist(), epoch)

    def _draws(self, task: Task) -> Draws | None:
        return Draws(self.seed, task.epoch, task.addresses) if self.augment else None

    def one_batch(self) -> Batch:
        """The batch that comes next. Nothing advances: asked again, it is the same."""
        return self._batch(self.next_task())

    def batch_of(self, indices: Sequence[int], epoch: int) -> Batch:
        """The samples `indices` of the data set as they are, were or will be in `epoch`.

        Their augmentation is that of the epoch, whichever batches they come in there; a sample that
        comes more than once is as it is the first time.
        """
        places = np.array(indices, np.int64)
        return self._batch(Task(epoch, places, places))

    def _batch(self, task: Task) -> Batch:
        made = self._make(task, Event())
        if not made.kinds:
            raise DataError(f"No sample of the batch could be read: {self.skipped[-1].reason}")
        return self._finished(made, [element.to(self.device) for element in made.elements])

    def next_task(self) -> Task:
        """What the next batch is to be made of."""
        task = next(self._tasks(self.epoch, min(self._start, max(len(self) - 1, 0))), None)
        if task is None:
            raise DataError("There is no batch: the data set of this loader is empty.")
        return task

    def fill_cache(self) -> None:
        """Decode every picture now, with a bar on a terminal, instead of in the first epoch."""
        self.reader.fill(self.num_workers)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs of a batch as they are to be shown, on the CPU: normalisation undone."""
        return decoded(self.batch_tfms, x.detach()).cpu()

    def n_inp_of(self, sample: Any) -> int:
        """How many of the elements of a sample or batch are inputs."""
        return self.reader.n_inp_of(sample)

    def item_name(self, index: int) -> str:
        """The item behind sample `index`, for messages: a file's path, mostly."""
        return self.reader.name(index)

    def to(self, device: torch.device | str) -> DataLoader:
        """Put the following batches on `device`; returns the loader itself."""
        self.device = torch.device(device)
        return self

    def over(
        self, dataset: MapDataset, bs: int | None = None, cache: str | None = "as this one"
    ) -> DataLoader:
        """A loader of another data set with these transforms, in order and without augmentation."""
        made = type(self)(
            dataset,
            bs or self._bs,
            global_bs=None if bs else self.global_bs,
            item_tfms=self.item_tfms,
            batch_tfms=self.batch_tfms,
            num_workers=self.num_workers,
            seed=self.seed,
            device=self.device,
            cache=self.cache if cache == "as this one" else cache,
            on_error=self.on_error,
        )
        made.world = self.world
        return made

    def state_dict(self) -> dict[str, int]:
        """Where the next batch comes from: the seed, the epoch, and the batches before it; the same
        in all processes.

        Asked inside the loop over the loader, it counts the batch at hand as done.
        """
        epoch, batch = self._under_way or (self.epoch, self._start)
        place = {"seed": self.seed, "epoch": epoch, "batch": batch}
        return {**place, "total_bs": self.total_bs, "n": self.n}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken: the next `iter` hands out the batches that were left. It
        may have been taken by another number of processes.

        Raises `UsageError` where the state is of other data, or inside an epoch of other batches.
        """
        with contextlib.suppress(KeyError):
            same_place = state["batch"] == 0 or state["total_bs"] == self.total_bs
            if state["n"] == self.n and same_place:
                self.seed, self.epoch, self._start = state["seed"], state["epoch"], state["batch"]
                return
        shared = f" in {self.world.size} processes together" if self.world.size > 1 else ""
        raise UsageError(
            f"The loader's state {state!r} does not fit a loader of n={self.n} samples with "
            f"batches of {self.total_bs}{shared}. Resume with the data and the batch size that it "
            f"was saved with, global_bs={state.get('total_bs', '...')}."
        )


def _check(bs: int, global_bs: int | None, num_workers: int | None, on_error: str) -> None:
    for name, size in {"bs": bs, "global_bs": global_bs}.items():
        if size is not None and size < 1:
            raise UsageError(f"DataLoader({name}={size!r}): expected a positive number of samples.")
    if num_workers is not None and num_workers < 0:
        raise UsageError(f"DataLoader(num_workers={num_workers!r}): expected 0 or more threads.")
    if on_error not in ("raise", "skip"):
        raise UsageError(f"DataLoader(on_error={on_error!r}): expected 'raise' or 'skip'.")
