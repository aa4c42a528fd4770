"""Batches: read by threads, augmented on the device, the same for any number of workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sized
from threading import Event
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data.collate import collate
from treadle.data.describe import describe
from treadle.data.draws import Draws, permutation
from treadle.data.pipeline import Stage, Transforms, batch_stages, decoded, item_stages, listed
from treadle.data.workers import default_workers, in_order
from treadle.errors import DataError, UsageError

__all__ = ["Batch", "DataLoader", "default_device"]

Batch = tuple[torch.Tensor, ...]
Indices = NDArray[np.int64]
Task = tuple[int, Indices]
"""A batch to be made: the epoch and the samples' indices."""


class MapDataset(Protocol):
    """What a `DataLoader` reads from: `len(dataset)`, and `dataset[i]` a tuple, inputs first."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


def default_device() -> torch.device:
    """The GPU if there is one (CUDA, else Apple's), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class DataLoader:
    """Batches of `dataset` on `device`: tuples of tensors, the first axis of each the samples'.

    Images arrive as float32 (B, C, H, W) in [0, 1] (uint8 is divided by 255), then `batch_tfms`
    change them; `item_tfms` change the single images before. Both act on the inputs of a sample
    (the first `dataset.n_inp`, or all but the last), never on its targets.

    - `bs`: samples a batch; `drop_last` leaves out a last batch that would be smaller, except when
      it is the only one.
    - `shuffle`: another order each epoch. `augment`: transforms draw random numbers; None means as
      `shuffle`.
    - `num_workers`: threads that build batches ahead; 0 builds them in the caller; None means the
      CPUs at hand, at most 8.
    - `seed`: with the epoch it determines order and augmentation, whatever `num_workers` and `bs`
      are. None draws one from torch's global generator, so `torch.manual_seed` before this makes
      everything reproducible.
    - `device`: None means `default_device()`.

    Attributes beside these: `n` samples, `epoch` (the one that the next `iter` draws; every `iter`
    advances it).

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
        augment: bool | None = None,
        item_tfms: Transforms = None,
        batch_tfms: Transforms = None,
        num_workers: int | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if bs < 1:
            raise UsageError(f"DataLoader(bs={bs!r}): expected a positive number of samples.")
        if num_workers is not None and num_workers < 0:
            raise UsageError(
                f"DataLoader(num_workers={num_workers!r}): expected 0 or more threads."
            )
        self.dataset, self.bs, self.shuffle, self.drop_last = dataset, bs, shuffle, drop_last
        self.augment = shuffle if augment is None else augment
        self.item_tfms, self.batch_tfms = listed(item_tfms), listed(batch_tfms)
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.seed = int(torch.randint(2**63 - 1, ()).item()) if seed is None else seed
        self.device = default_device() if device is None else torch.device(device)
        self.epoch = 0
        self.item_stages = item_stages(self.item_tfms)
        self.batch_stages = batch_stages(self.batch_tfms)
        self._start = 0  # the batch that the next `iter` begins with
        self._under_way: tuple[int, int] | None = None  # epoch, batches handed out

    @property
    def n(self) -> int:
        """How many samples the data set has."""
        return len(self.dataset)

    def __len__(self) -> int:
        if self.drop_last and self.n >= self.bs:
            return self.n // self.bs
        return -(-self.n // self.bs)

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self.epoch, self._start
        self.epoch, self._start = epoch + 1, 0
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        tasks = self._tasks(epoch)[start:]
        built = in_order(self._build, tasks, self.num_workers)
        try:
            for count, (task, batch) in enumerate(zip(tasks, built, strict=True), start + 1):
                self._under_way = epoch, count
                yield self._on_device(batch, task)
        finally:
            self._under_way = None
            cast(Any, built).close()  # a generator: no thread is left behind

    def _tasks(self, epoch: int) -> list[Task]:
        order = permutation(self.seed, epoch, self.n) if self.shuffle else np.arange(self.n)
        return [(epoch, order[k * self.bs : (k + 1) * self.bs]) for k in range(len(self))]

    def _build(self, task: Task, stop: Event) -> Batch:
        """In a worker: the stacked samples, in the host's memory."""
        epoch, indices = task
        samples = []
        for index in indices.tolist():
            if stop.is_set():
                raise _Stopped
            samples.append(self._sample(index, epoch))
        batch = collate(samples, [self.item_name(index) for index in indices.tolist()])
        # copies to the GPU overlap with its work only from pinned memory
        return tuple(t.pin_memory() for t in batch) if self.device.type == "cuda" else batch

    def _sample(self, index: int, epoch: int) -> tuple[Any, ...]:
        try:
            sample = tuple(self.dataset[index])
        except Exception as error:
            error.add_note(f"While reading sample {index}: {self.item_name(index)}")
            raise
        draws = Draws(self.seed, epoch, np.array([index])) if self.augment else None
        n_inp = self.n_inp_of(sample)
        return (*(self._item_transformed(x, index, draws) for x in sample[:n_inp]), *sample[n_inp:])

    def _item_transformed(self, value: Any, index: int, draws: Draws | None) -> Any:
        for stage in self.item_stages:
            value = self.item_stage(stage, value, index, draws)
        return value

    def item_stage(self, stage: Stage, value: Any, index: int, draws: Draws | None) -> Any:
        """What an item stage makes of `value`, an input of sample `index`."""
        try:
            return stage.run(value, draws)
        except Exception as error:
            raise DataError(
                f"The item transform {stage.name} failed on sample {index} "
                f"({self.item_name(index)}), given {describe(value)}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _on_device(self, batch: Batch, task: Task) -> Batch:
        """In the caller: the batch on the device, its inputs transformed."""
        batch = tuple(element.to(self.device, non_blocking=True) for element in batch)
        draws = self._draws(task)
        n_inp = self.n_inp_of(batch)
        return (*(self._batch_transformed(x, draws) for x in batch[:n_inp]), *batch[n_inp:])

    def _draws(self, task: Task) -> Draws | None:
        return Draws(self.seed, *task) if self.augment else None

    def _batch_transformed(self, x: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        for stage in self.batch_stages:
            x = self.batch_stage(stage, x, draws)
        return x

    def batch_stage(self, stage: Stage, x: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        """What a batch stage makes of the inputs `x` of a batch."""
        try:
            out: torch.Tensor = stage.run(x, draws)
        except Exception as error:
            error.add_note(f"In the batch transform {stage.name}, given {describe(x)}")
            raise
        return out

    def n_inp_of(self, sample: Sized) -> int:
        """How many of the elements of a sample or batch are inputs."""
        known = getattr(self.dataset, "n_inp", None)
        return known if isinstance(known, int) else max(len(sample) - 1, 1)

    def item_name(self, index: int) -> str:
        """The item behind sample `index`, for messages: a file's path, mostly."""
        items = getattr(self.dataset, "items", None)
        return str(items[index]) if items is not None else f"sample {index}"

    def one_batch(self) -> Batch:
        """The batch that comes next. Nothing advances: asked again, it is the same."""
        task = self._next_task()
        return self._on_device(self._build(task, Event()), task)

    def raw_batch(self) -> tuple[Batch, Draws | None]:
        """The batch that comes next, before batch transforms, on the CPU; and their draws."""
        task = self._next_task()
        return self._build(task, Event()), self._draws(task)

    def _next_task(self) -> Task:
        tasks = self._tasks(self.epoch)
        if not tasks:
            raise DataError("There is no batch: the data set of this loader is empty.")
        return tasks[min(self._start, len(tasks) - 1)]

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs of a batch as they are to be shown, on the CPU: normalisation undone."""
        return decoded(self.batch_tfms, x.detach()).cpu()

    def to(self, device: torch.device | str) -> DataLoader:
        """Put the following batches on `device`; returns the loader itself."""
        self.device = torch.device(device)
        return self

    def over(self, dataset: MapDataset, bs: int | None = None) -> DataLoader:
        """A loader of another data set with these transforms, in order and without augmentation."""
        return DataLoader(
            dataset,
            bs or self.bs,
            item_tfms=self.item_tfms,
            batch_tfms=self.batch_tfms,
            num_workers=self.num_workers,
            seed=self.seed,
            device=self.device,
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


class _Stopped(Exception):
    """Ends a worker's batch that nobody waits for."""
