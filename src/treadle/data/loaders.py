"""Batches: read by threads, augmented, the same for any number of workers."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data.ahead import on_device
from treadle.data.draws import Draws
from treadle.data.making import Made, Maker, Task, resize_of
from treadle.data.order import Order, as_order, occurrences
from treadle.data.pipeline import Transforms, decoded, listed
from treadle.data.reading import MapDataset, Reader, Skipped
from treadle.data.workers import Stalled, closed_at_exit, default_workers, in_order
from treadle.errors import DataError, UsageError
from treadle.interrupts import undivided

__all__ = ["Batch", "DataLoader", "default_device"]

Batch = tuple[torch.Tensor, ...]


def default_device() -> torch.device:
    """The GPU if there is one (CUDA, else Apple's), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class DataLoader:
    """Batches of `dataset` on `device`: tuples of tensors, the first axis of each the samples'.

    Images arrive as float32 (B, C, H, W) in [0, 1] (uint8 is divided by 255), then `batch_tfms`
    change them; `item_tfms` change the single images before. Both act on the inputs of a sample
    (the first `dataset.n_inp`, or all but the last); targets that are masks, points, boxes or
    images are moved and resized with them, and otherwise left alone.

    - `bs`: samples a batch; `drop_last` leaves out a last batch that would be smaller, except when
      it is the only one.
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
    every `iter` advances it), `indices` (into the data set, of the batch handed out last).

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
        _check(bs, num_workers, on_error)
        self.dataset, self.bs, self.drop_last = dataset, bs, drop_last
        self.sampler = as_order(sampler, shuffle).of(dataset)
        self.augment = (shuffle or sampler is not None) if augment is None else augment
        self.item_tfms, self.batch_tfms = listed(item_tfms), listed(batch_tfms)
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.seed = int(torch.randint(2**63 - 1, ()).item()) if seed is None else seed
        self.device = default_device() if device is None else torch.device(device)
        self.cache, self.on_error = cache, on_error
        self.epoch = 0
        self.indices: NDArray[np.int64] = np.empty(0, np.int64)
        self.reader = Reader(dataset, resize_of(self.item_tfms), cache, on_error == "skip")
        self.maker = Maker(self.reader, self.item_tfms, self.batch_tfms, self.num_workers)
        self._start = 0  # the batch that the next `iter` begins with
        self._under_way: tuple[int, int] | None = None  # epoch, batches handed out

    @property
    def n(self) -> int:
        """How many samples an epoch has."""
        return self.sampler.size(len(self.dataset))

    @property
    def skipped(self) -> list[Skipped]:
        """The samples that could not be read so far (`on_error="skip"`)."""
        return self.reader.skipped

    def __len__(self) -> int:
        if self.drop_last and self.n >= self.bs:
            return self.n // self.bs
        return -(-self.n // self.bs)

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
        try:
            for (count, batch), elements in there:
                self._under_way, self.indices = (epoch, count), batch.indices
                if batch.kinds:  # else every sample of the batch was skipped
                    yield self._finished(batch, elements)
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
        order = self.sampler.order(self.seed, epoch, len(self.dataset))
        # a sample that comes again in an epoch is augmented anew
        addresses = (
            order + len(self.dataset) * occurrences(order) if self.sampler.repeats else order
        )
        for k in range(start, len(self)):
            these = slice(k * self.bs, (k + 1) * self.bs)
            yield Task(epoch, order[these], addresses[these])

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
        return type(self)(
            dataset,
            bs or self.bs,
            item_tfms=self.item_tfms,
            batch_tfms=self.batch_tfms,
            num_workers=self.num_workers,
            seed=self.seed,
            device=self.device,
            cache=self.cache if cache == "as this one" else cache,
            on_error=self.on_error,
        )

    def state_dict(self) -> dict[str, int]:
        """Where the next batch comes from: the seed, the epoch, and the batches before it.

        Asked inside the loop over the loader, it counts the batch at hand as done.
        """
        epoch, batch = self._under_way or (self.epoch, self._start)
        return {"seed": self.seed, "epoch": epoch, "batch": batch, "bs": self.bs, "n": self.n}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken: the next `iter` hands out the batches that were left.

        Raises `UsageError` where the state is of other data, or inside an epoch of another `bs`.
        """
        with contextlib.suppress(KeyError):
            same_place = state["batch"] == 0 or state["bs"] == self.bs
            if state["n"] == self.n and same_place:
                self.seed, self.epoch, self._start = state["seed"], state["epoch"], state["batch"]
                return
        raise UsageError(
            f"The loader's state {state!r} does not fit a loader of n={self.n} samples with "
            f"bs={self.bs}. Resume with the data and the batch size that the state was saved with."
        )


def _check(bs: int, num_workers: int | None, on_error: str) -> None:
    if bs < 1:
        raise UsageError(f"DataLoader(bs={bs!r}): expected a positive number of samples.")
    if num_workers is not None and num_workers < 0:
        raise UsageError(f"DataLoader(num_workers={num_workers!r}): expected 0 or more threads.")
    if on_error not in ("raise", "skip"):
        raise UsageError(f"DataLoader(on_error={on_error!r}): expected 'raise' or 'skip'.")
