"""Documents of about one length together, padded: batches for a classifier of texts."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data import DataLoader, Dataset, Order
from treadle.data.collate import stacked
from treadle.data.making import Made, Task
from treadle.data.permutation import permutation
from treadle.errors import UsageError
from treadle.text.dataset import TextDataset

__all__ = ["ByLength", "SortedLoader", "Sortish", "padded"]

Lengths = NDArray[np.int64]

_POOL = 50
"""So many batches are shuffled among each other before they are sorted."""


class ByLength(Order):
    """The longest document first; those of one length as the data set has them.

    >>> ByLength([2, 9, 5]).order(seed=0, epoch=0, n=3).tolist()
    [1, 2, 0]
    """

    repeats = False

    def __init__(self, lengths: Sequence[int] | Lengths) -> None:
        self.lengths = np.asarray(lengths, np.int64)

    def order(self, seed: int, epoch: int, n: int) -> Lengths:
        return np.argsort(-self.lengths, kind="stable")


class Sortish(ByLength):
    """Another order each epoch, in which a batch of `bs` documents has about one length.

    The documents are shuffled, sorted by length within pools of 50 batches, and the batches
    shuffled. The longest document comes in the first batch, so that memory that does not suffice is
    known at once; a smaller batch comes last.

    >>> order = Sortish([1, 9, 2, 8], bs=2).order(seed=0, epoch=0, n=4)
    >>> order.tolist()
    [1, 3, 2, 0]
    """

    def __init__(self, lengths: Sequence[int] | Lengths, bs: int) -> None:
        super().__init__(lengths)
        self.bs = bs

    def order(self, seed: int, epoch: int, n: int) -> Lengths:
        order = permutation(seed, epoch, n)
        if not n:
            return order
        longest = order == np.argmax(self.lengths)
        order = np.concatenate([order[longest], order[~longest]])
        pools = np.split(order, range(_POOL * self.bs, n, _POOL * self.bs))
        order = np.concatenate(
            [pool[np.argsort(-self.lengths[pool], kind="stable")] for pool in pools]
        )
        whole = n // self.bs
        if whole > 2:
            batches = order[: whole * self.bs].reshape(whole, self.bs)
            # an epoch below 0 is none of the loader's own: other numbers than those of the shuffle
            others = 1 + permutation(seed, -1 - epoch, whole - 1)
            order = np.concatenate([batches[0], *batches[others], order[whole * self.bs :]])
        return order


class SortedLoader(DataLoader):
    """Batches (x, lengths, y) of documents: x int64 (bs, longest), padded at the end, and lengths
    int64 (bs,), both inputs of the model; y as its block makes it. Without labels (x, lengths).

    With `shuffle` the order is `Sortish`, by batches of all processes, else `ByLength`; items of
    `test_dl` stay in their order. The arguments are those of `DataLoader`; `num_workers` is 0
    unless given, as a batch takes less time to make than to hand over.

    Raises:
        UsageError: where the block's vocab has no token to pad with.
    """

    def __init__(
        self,
        dataset: Dataset,
        bs: int = 64,
        shuffle: bool = False,
        drop_last: bool = False,
        *,
        sampler: Order | None = None,
        augment: bool | None = None,
        num_workers: int | None = None,
        **options: Any,
    ) -> None:
        dataset = TextDataset.like(dataset)
        block: Any = dataset.blocks[0]
        self.pad_id: int | None = block.pad_id
        if self.pad_id is None:
            raise UsageError(
                f"The vocab has no {block.tokenizer.pad!r} to fill up shorter documents of a batch "
                "with; give the tokenizer a pad= that the vocab has."
            )
        super().__init__(
            dataset,
            bs,
            shuffle,
            drop_last,
            augment=shuffle if augment is None else augment,
            num_workers=num_workers or 0,
            **options,
        )
        if sampler is not None:
            self.sampler = sampler.of(dataset)
        elif dataset.part != "test":
            lengths = self._lengths()
            self.sampler = Sortish(lengths, self.total_bs) if shuffle else ByLength(lengths)

    def _lengths(self) -> Lengths:
        """The tokens of each document; 0 of one that is skipped."""
        samples = self.reader.read(range(len(self.dataset)), Event())
        lengths = np.zeros(len(self.dataset), np.int64)
        lengths[samples.indices] = [len(doc) for doc in samples.columns[0]]
        return lengths

    @property
    def n_inp(self) -> int:
        """2: x and the lengths."""
        return 2

    def n_inp_of(self, sample: Any) -> int:
        return 2

    def _make(self, task: Task, stop: Event) -> Made:
        samples, _ = self.maker.read(task, None, stop)
        if not len(samples):
            return Made(samples.indices, [], [], 0, None, None)
        docs, *others = samples.columns
        assert self.pad_id is not None
        elements = [*padded(docs, self.pad_id), *(stacked(None, c, samples) for c in others)]
        if self.device.type == "cuda":
            elements = [element.pin_memory() for element in elements]
        return Made(samples.indices, elements, [None] * len(elements), 2, None, None)


def padded(docs: Sequence[NDArray[np.int32]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Documents as rows, filled up at the end, and their lengths.

    >>> x, lengths = padded([np.array([5, 6, 7]), np.array([8])], pad_id=1)
    >>> x.tolist(), lengths.tolist()
    ([[5, 6, 7], [8, 1, 1]], [3, 1])
    """
    lengths = np.array([len(doc) for doc in docs], np.int64)
    x = np.full((len(docs), int(lengths.max())), pad_id, np.int64)
    for row, doc in zip(x, docs, strict=True):
        row[: len(doc)] = doc
    return torch.from_numpy(x), torch.from_numpy(lengths)
