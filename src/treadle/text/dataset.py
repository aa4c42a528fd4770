"""The data sets of text: what `DataBlock` made, and token numbers of anybody's making."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from treadle.data import Dataset
from treadle.errors import DataError, UsageError
from treadle.losses import CrossEntropyLossFlat

__all__ = ["TextDataset", "Tokens"]


@dataclass(frozen=True)
class TextDataset(Dataset):
    """A `Dataset` of texts. Its `vocab` is the tokens; where the target has classes, [tokens,
    classes]."""

    @classmethod
    def like(cls, dataset: Dataset) -> TextDataset:
        """`dataset`, as one of texts."""
        d = dataset
        return cls(d.items, d.getters, d.blocks, d.n_inp, d.part)

    def of(self, items: Sequence[Any], with_labels: bool) -> TextDataset:
        return self.like(super().of(items, with_labels))

    @property
    def vocab(self) -> list[Any] | None:
        vocabs = [block.vocab for block in self.blocks if block.vocab is not None]
        return vocabs if len(vocabs) > 1 else next(iter(vocabs), None)

    @property
    def n_out(self) -> int | None:
        """How many numbers a model gives: of a language model, one for each token."""
        return super().n_out if self.targets else self.blocks[0].n_out

    @property
    def loss_func(self) -> Callable[..., Any] | None:
        return super().loss_func if self.targets else self.blocks[0].loss_func


class Tokens:
    """Token numbers: `docs`, one array for each document, int32.

    Raises:
        UsageError: for what is no list of whole numbers, or beyond the `vocab`.

    >>> [doc.tolist() for doc in Tokens([[1, 2], [3]]).docs]
    [[1, 2], [3]]
    """

    n_inp = 1

    def __init__(
        self, docs: ArrayLike | Sequence[ArrayLike], vocab: Sequence[str] | None = None
    ) -> None:
        rows: Any = docs
        one = hasattr(rows, "ndim") or not len(rows) or np.ndim(rows[0]) == 0
        self.docs = [_numbers(doc) for doc in ([rows] if one else rows)]
        self.vocab = None if vocab is None else list(vocab)
        largest = max((int(doc.max()) for doc in self.docs if len(doc)), default=0)
        if self.vocab is not None and largest >= len(self.vocab):
            raise UsageError(
                f"There is a token number {largest}, and the vocab has {len(self.vocab)} tokens; "
                "expected numbers below that."
            )

    def __len__(self) -> int:
        return len(self.docs)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32]]:
        return (self.docs[index],)

    @property
    def n_out(self) -> int | None:
        """How many numbers a model gives, one for each token."""
        return None if self.vocab is None else len(self.vocab)

    @property
    def loss_func(self) -> Callable[..., Any]:
        """`CrossEntropyLossFlat()`."""
        return CrossEntropyLossFlat()


def _numbers(doc: ArrayLike) -> NDArray[np.int32]:
    array = np.asarray(doc)
    if array.size == 0:
        return np.empty(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0:
        raise UsageError(
            f"A document is an array of shape {array.shape} and dtype {array.dtype}; expected "
            "token numbers, 0 or more, of shape (N,). TextBlock makes them of text."
        )
    if array.max() > np.iinfo(np.int32).max:
        raise DataError(f"The token number {array.max()} is above 2,147,483,647.")
    return array.astype(np.int32)
