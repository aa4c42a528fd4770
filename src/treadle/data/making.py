"""From indices to a batch: what the workers do, and what is left for the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data.buffers import Buffers
from treadle.data.cache import DeviceCache
from treadle.data.collate import check_shapes, collate, stacked
from treadle.data.draws import Draws
from treadle.data.fused import compiled
from treadle.data.pipeline import batch_stages, item_stages
from treadle.data.reading import Reader
from treadle.data.resize import Resize, ResizeMethod
from treadle.data.samples import ItemStage, Placed, Samples
from treadle.data.samples import through as through_items
from treadle.data.stages import BatchStage, Elements, FirstPass
from treadle.data.stages import through as through_batch
from treadle.errors import UsageError

__all__ = ["Maker", "Task"]

Transform = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Task:
    """A batch to be made: the samples' indices, and the addresses of their random numbers."""

    epoch: int
    indices: NDArray[np.int64]
    addresses: NDArray[np.int64]


@dataclass(slots=True)
class Made:
    """What a worker made: the samples' indices, their elements, and what is still to be done."""

    indices: NDArray[np.int64]
    elements: Elements
    kinds: list[str | None]
    n_inp: int
    draws: Draws | None
    left: Sequence[BatchStage] | None
    """None when all is done."""
    on_device: Callable[[], torch.Tensor] | None = None
    """Gives the first element, where that is on the device already."""


class Maker:
    """Makes batches of what `reader` reads, for `workers` threads and a caller."""

    def __init__(
        self,
        reader: Reader,
        item_tfms: Sequence[Transform],
        batch_tfms: Sequence[Transform],
        workers: int = 0,
    ) -> None:
        self.reader = reader
        self.items: list[ItemStage] = item_stages(item_tfms)
        self.stages: list[BatchStage] = batch_stages(batch_tfms)
        self.first = FirstPass(self.stages) if compiled() is not None else None
        # those that wait at the workers, the one under way, and the one that the caller has
        self.buffers = Buffers(most=2 * workers + 2)
        self.resident: DeviceCache | None = None
        self._stays = False  # in the host's memory, and it has been said why

    def make(
        self, task: Task, draws: Draws | None, on_cpu: bool, threads: int, stop: Event
    ) -> Made:
        """The batch of `task`, in the host's memory, all stages done if it stays there (`on_cpu`).

        Raises `Stopped` soon after `stop` is set.
        """
        samples, draws = self.read(task, draws, stop)
        if not len(samples):
            return Made(samples.indices, [], [], 0, draws, [])
        if self.resident is not None and not on_cpu:
            return self._cut(self.resident, samples, draws)
        for _ in through_items(self.items, samples, draws):
            pass
        made = self._passed(samples, draws, threads) if on_cpu else None
        made = made or self.collated(samples, draws)
        return self.finished(made) if on_cpu else made

    def read(self, task: Task, draws: Draws | None, stop: Event) -> tuple[Samples, Draws | None]:
        """The samples of `task`, and the draws of those that could be read."""
        samples = self.reader.read(task.indices.tolist(), stop)
        if draws is not None and len(samples) < len(task.indices):
            there = np.isin(task.indices, samples.indices)
            draws = Draws(draws.seed, draws.epoch, task.addresses[there])
        return samples, draws

    def collated(self, samples: Samples, draws: Draws | None) -> Made:
        """The samples as a batch that all stages are still to come of."""
        elements = collate(samples)
        return Made(samples.indices, elements, samples.kinds, samples.n_inp, draws, self.stages)

    def _passed(self, samples: Samples, draws: Draws | None, threads: int) -> Made | None:
        """The samples as a batch after the compiled pass; None where it cannot be made of them."""
        kernel, kinds, columns = compiled(), samples.kinds, samples.columns
        inputs = [place for place in range(samples.n_inp) if kinds[place] == "image"]
        if kernel is None or self.first is None or 0 not in inputs:
            return None
        if not all(isinstance(columns[place][0], np.ndarray) for place in inputs):
            return None  # an item transform made floats
        for place in inputs:
            check_shapes(columns[place], samples)
        before = columns[0][0].shape[:2]
        if not all(self.first.takes(columns[place][0], before) for place in inputs):
            return None
        done = self.first.prepared(before, draws)
        elements = []
        for place, (kind, column) in enumerate(zip(kinds, columns, strict=True)):
            if place in inputs:
                elements.append(done(column, kernel, threads, self.buffers))
                continue
            element = stacked(kind, column, samples)
            element = element.float().div_(255) if kind == "image" else element
            elements.append(self.first.move(element, kind, before, done))
        return Made(samples.indices, elements, kinds, samples.n_inp, draws, self.first.rest)

    def settle(self, device: torch.device) -> None:
        """Move the pictures to `device` for good, where all are decoded and a batch is a gather."""
        if self.resident is not None or self._stays:
            return
        if not self._is_gather:
            warnings.warn(
                "cache='device' takes images alone, with Resize to 'crop' or 'squish' as the one "
                "item transform; these data stay in the host's memory.",
                stacklevel=4,
            )
            self._stays = True
        elif self.reader.complete:
            try:
                self.resident = DeviceCache(self.reader.caches[0], device)
            except UsageError:
                if self.reader.complete:  # else the disk's pictures were damaged: read them anew
                    raise

    @property
    def _is_gather(self) -> bool:
        """Whether what is read is one image a sample, and a batch is windows of them."""
        kinds = [kind for kind in self.reader.kinds if kind is not None]
        (placed,) = self.items if len(self.items) == 1 else (None,)
        windows = isinstance(placed, Placed) and placed.transform.method is not ResizeMethod.Pad
        return windows and kinds == self.reader.kinds[:1] == ["image"]

    def _cut(self, resident: DeviceCache, samples: Samples, draws: Draws | None) -> Made:
        """The samples, their pictures to be cut out on the device."""
        frames = np.array([pixels.shape[:2] for pixels in samples.columns[0]])
        placed = cast(Placed, self.items[0])
        corners, size = placed.transform.windows(frames, placed.draws(draws)), placed.transform.size
        others = [
            stacked(kind, column, samples)
            for kind, column in zip(samples.kinds[1:], samples.columns[1:], strict=True)
        ]
        cut = partial(resident.windows, samples.indices, corners[:, 0], corners[:, 1], *size)
        return Made(samples.indices, others, samples.kinds, samples.n_inp, draws, self.stages, cut)

    def finished(self, made: Made) -> Made:
        """`made` after the stages that were left, where its elements are."""
        if made.left is None:
            return made
        if made.on_device is not None:
            made.elements, made.on_device = [made.on_device(), *made.elements], None
        for _ in self.steps(made):
            pass
        return made

    def steps(self, made: Made) -> Iterator[BatchStage]:
        """The stages that were left, each handed out when it has been run."""
        left, made.left = made.left or [], None
        args = made.kinds, made.n_inp, made.draws
        try:
            for stage, elements in through_batch(left, made.elements, *args):
                made.elements = elements
                yield stage
        except Exception as error:
            first = int(made.indices[0])
            name = self.reader.name(first)
            error.add_note(f"The batch has {len(made.indices)} samples, first {first}: {name}")
            raise
        made.elements = [
            element.long() if kind == "mask" else element  # classes, as losses want them
            for kind, element in zip(made.kinds, made.elements, strict=True)
        ]


def resize_of(transforms: Sequence[Transform]) -> Resize | None:
    """The `Resize` that comes first, whose first part is done when samples are read."""
    first = transforms[0] if transforms else None
    return first if isinstance(first, Resize) else None
