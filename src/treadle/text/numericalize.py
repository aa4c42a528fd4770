"""Tokens to numbers: the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.errors import DataError, UsageError, nearest
from treadle.registry import register
from treadle.text.tokenize import SPECIAL, UNK

__all__ = ["Numericalize", "make_vocab"]


def make_vocab(
    counts: Mapping[str, int],
    min_freq: int = 3,
    max_vocab: int = 60000,
    special: Sequence[str] = SPECIAL,
) -> list[str]:
    """The tokens that come `min_freq` times or more, the most frequent first; those that come as
    often as each other in the order of their code points. `special` come before all of them, and
    count among the `max_vocab`.

    >>> make_vocab({"b": 5, "a": 5, "c": 9, "d": 1}, special=["xxunk"])
    ['xxunk', 'c', 'a', 'b']
    """
    if min_freq < 1 or max_vocab < len(special):
        raise UsageError(
            f"min_freq={min_freq!r}, max_vocab={max_vocab!r}: expected a frequency of 1 or more "
            f"and room for the {len(special)} special tokens."
        )
    first = dict.fromkeys(special)
    frequent = [token for token, count in counts.items() if count >= min_freq]
    frequent = sorted((t for t in frequent if t not in first), key=lambda t: (-counts[t], t))
    return [*first, *frequent][:max_vocab]


@register
class Numericalize:
    """Numbers for tokens, and back: the place of each in `vocab`.

    A token that `vocab` lacks becomes `unk`, whose number is `unk_id`.

    Raises:
        UsageError: for a vocab that names a token twice or has no `unk`.

    >>> numericalize = Numericalize(["xxunk", "xxpad", "a", "cat"])
    >>> numericalize(["a", "dog"]).tolist(), numericalize.decode([2, 0])
    ([2, 0], ['a', 'xxunk'])
    """

    def __init__(self, vocab: Sequence[str], unk: str = UNK) -> None:
        self.vocab, self.unk = list(vocab), unk
        self._index = {token: index for index, token in enumerate(self.vocab)}
        if len(self._index) < len(self.vocab):
            twice = next(t for i, t in enumerate(self.vocab) if self._index[t] != i)
            raise UsageError(f"The vocab names the token {twice!r} twice.")
        if unk not in self._index:
            near = nearest(unk, [t for t in self.vocab if t[:1] == unk[:1]])
            raise UsageError(
                f"The vocab of {len(self.vocab)} tokens has no {unk!r} for tokens that it lacks; "
                f"put it there, first, or give the tokenizer another unk: {near}"
            )
        self.unk_id = self._index[unk]

    def as_arguments(self) -> dict[str, Any]:
        """The arguments that make it."""
        return {"vocab": self.vocab, "unk": self.unk}

    def __call__(self, tokens: Iterable[str]) -> NDArray[np.int32]:
        index, unk = self._index.get, self.unk_id
        return np.array([index(token, unk) for token in tokens], np.int32)

    def id_of(self, token: str) -> int | None:
        """The number of a token, or None where the vocab lacks it."""
        return self._index.get(token)

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The tokens of numbers. Raises `DataError` for a number that no token has."""
        numbers = [int(number) for number in ids]
        wrong = next((n for n in numbers if not 0 <= n < len(self.vocab)), None)
        if wrong is not None:
            raise DataError(f"No token has the number {wrong}; the vocab has {len(self.vocab)}.")
        return [self.vocab[number] for number in numbers]
