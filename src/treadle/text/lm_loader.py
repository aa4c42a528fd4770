"""The stream of a language model: row i of a batch goes on from row i of the batch before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from treadle.data import DataLoader, Dataset, InOrder, Shuffled
from treadle.data.loaders import Batch
from treadle.data.making import Made, Task
from treadle.data.reading import MapDataset
from treadle.data.sharing import own_places
from treadle.errors import DataError, UsageError
from treadle.text.dataset import TextDataset, Tokens

__all__ = ["LMLoader"]

Ids = NDArray[np.int32]


class Stream(NamedTuple):
    """An epoch's text: its tokens (N,), the documents in their order, and where each ends."""

    tokens: torch.Tensor
    order: NDArray[np.int64]
    ends: NDArray[np.int64]


class LMLoader(DataLoader):
    """Batches (x, y) of a language model: int64 of shape (bs, seq_len), y one token ahead of x.

    The documents, one after the other, are cut into `bs` rows of equal length, and the rows into
    batches of `seq_len` tokens, so that a model may carry its state from batch to batch. The last
    batch of an epoch is as long as the rows still are; what does not fill a row is left out. Of
    several processes each reads the same rows in every batch: `total_bs` rows are dealt out.

    - `docs`: token numbers, as one array for a text or a list of arrays for documents; or the
      `Dataset` of a `TextBlock`.
    - `seq_len`: None means the block's, or 72.
    - `shuffle`: another order of the documents each epoch, by (seed, epoch).
    - `vocab`: the tokens that the numbers stand for, where the block does not say.

    The other arguments are those of `DataLoader`. A batch is a slice of one array: `num_workers`,
    `drop_last` and `augment` are taken and change nothing. `n` counts the sequences of an epoch,
    `indices` holds the documents that the rows of the last batch begin in.

    Raises:
        DataError: where there are tokens, and not enough for one in each row.
        UsageError: for a `sampler`: rows go on from batch to batch in one order.

    >>> loader = LMLoader(np.arange(14), bs=2, seq_len=4, device="cpu")
    >>> [x.tolist() for x, y in loader]
    [[[0, 1, 2, 3], [6, 7, 8, 9]], [[4, 5], [10, 11]]]
    >>> loader.one_batch()[1].tolist()
    [[1, 2, 3, 4], [7, 8, 9, 10]]
    """

    def __init__(
        self,
        docs: ArrayLike | Sequence[ArrayLike] | Dataset | Tokens,
        bs: int = 64,
        seq_len: int | None = None,
        shuffle: bool = False,
        seed: int | None = None,
        drop_last: bool = False,
        *,
        vocab: Sequence[str] | None = None,
        sampler: Any = None,
        augment: bool | None = None,
        num_workers: int | None = None,
        **options: Any,
    ) -> None:
        if sampler is not None:
            raise UsageError(
                "LMLoader takes no sampler: its rows go on from batch to batch. shuffle=True has "
                "the documents in another order each epoch."
            )
        dataset: Any = docs
        if isinstance(docs, Dataset):
            dataset = TextDataset.like(docs)
        elif not isinstance(docs, Tokens):
            dataset = Tokens(docs, vocab)
        own = dataset.blocks[0].seq_len if isinstance(docs, Dataset) else 72
        self.seq_len: int = own if seq_len is None else seq_len
        if self.seq_len < 1:
            raise UsageError(
                f"LMLoader(seq_len={seq_len!r}): expected a positive number of tokens."
            )
        order = Shuffled() if shuffle else InOrder()
        super().__init__(
            dataset, bs, sampler=order, augment=shuffle, num_workers=0, seed=seed, **options
        )
        self._docs: list[Ids] = dataset.docs if isinstance(dataset, Tokens) else self._read()
        self._lengths = np.array([len(doc) for doc in self._docs], np.int64)
        self._streams: dict[tuple[int, int], Stream] = {}
        self._check_size()

    def _read(self) -> list[Ids]:
        """The documents that can be read."""
        docs: list[Ids] = self.reader.read(range(len(self.dataset)), Event()).columns[0]
        return docs

    @property
    def n_tokens(self) -> int:
        """How many tokens the documents have."""
        return int(self._lengths.sum())

    @property
    def row_len(self) -> int:
        """How many tokens a row has in an epoch."""
        return max(self.n_tokens - 1, 0) // self.total_bs

    @property
    def n(self) -> int:
        """How many sequences an epoch has: `total_bs` a batch."""
        return len(self) * self.total_bs

    @property
    def n_inp(self) -> int:
        """1: x is the input, y the target."""
        return 1

    def __len__(self) -> int:
        return -(-self.row_len // self.seq_len)

    def _check_size(self) -> None:
        if self.n_tokens and not self.row_len:
            part = getattr(self.dataset, "part", "")
            raise DataError(
                f"The {part + ' ' if part else ''}text has {self.n_tokens} tokens; expected "
                f"{self.total_bs + 1} or more, one for each of {self.total_bs} rows and one to "
                "foretell. Give a smaller bs, or more text."
            )

    def _stream(self, epoch: int) -> Stream:
        """The tokens in the order of an epoch."""
        key = (self.seed, epoch if self.augment else 0)
        if key not in self._streams:
            order = self.sampler.order(self.seed, epoch, len(self._docs))
            flat = np.concatenate([self._docs[i] for i in order.tolist()])
            made = Stream(torch.from_numpy(flat), order, self._lengths[order].cumsum())
            # a look at the epoch to come leaves the one under way where it is
            self._streams = dict([*self._streams.items()][-1:]) | {key: made}
        return self._streams[key]

    def _tasks(self, epoch: int, start: int = 0) -> Iterator[Task]:
        rows = own_places(self.total_bs, self.world) * self.row_len
        for k in range(start, len(self)):
            stream = self._stream(epoch)
            places = np.searchsorted(stream.ends, rows + k * self.seq_len, side="right")
            yield Task(epoch, stream.order[places], np.array([k]))

    def _make(self, task: Task, stop: Event) -> Made:
        """The batch `task.addresses[0]` of an epoch."""
        flat = self._stream(task.epoch).tokens
        own = own_places(self.total_bs, self.world)
        first, n = int(own[0]) * self.row_len, len(own) * self.row_len
        at = int(task.addresses[0]) * self.seq_len
        window = slice(at, at + self.seq_len)
        elements = [
            flat[start : start + n].view(len(own), -1)[:, window].long()
            for start in (first, first + 1)
        ]
        if self.device.type == "cuda":
            elements = [element.pin_memory() for element in elements]
        return Made(task.indices, elements, [None, None], 1, None, None)

    def batch_of(self, indices: Sequence[int], epoch: int) -> Batch:
        """Raises `UsageError`: the batches of a stream are not made of samples."""
        raise UsageError(
            "The batches of a language model are pieces of one stream, not samples; `iter` and "
            "load_state_dict come to any of them."
        )

    def over(
        self, dataset: MapDataset, bs: int | None = None, cache: str | None = "as this one"
    ) -> LMLoader:
        """A loader of other documents, in order."""
        docs: Any = dataset
        made = LMLoader(
            docs,
            bs or self._bs,
            self.seq_len,
            global_bs=None if bs else self.global_bs,
            seed=self.seed,
            device=self.device,
            cache=self.cache if cache == "as this one" else cache,
            on_error=self.on_error,
        )
        made.world = self.world
        return made

    def state_dict(self) -> dict[str, int]:
        """That of `DataLoader`, and `seq_len`."""
        return {**super().state_dict(), "seq_len": self.seq_len}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken.

        Raises `UsageError` where the state is of other data, another `total_bs` or `seq_len`.
        """
        if state.get("seq_len", self.seq_len) != self.seq_len:
            raise UsageError(
                f"The loader's state was saved with seq_len={state['seq_len']}, this loader has "
                f"seq_len={self.seq_len}. Resume with the one that the state was saved with."
            )
        super().load_state_dict(state)
