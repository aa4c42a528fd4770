"""Many texts at once, by as many processes as there are CPUs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from treadle.data.sharing import processes_here
from treadle.text.numericalize import Numericalize
from treadle.text.tokenize import Tokenizer

__all__ = ["Tokenized", "tokenize_many"]

_WORTH = 4_000_000
"""Fewer characters than these take less time than the processes' start and answers."""
_PIECE = 500_000
"""Characters that a process is given at a time."""


@dataclass(frozen=True)
class Tokenized:
    """The tokens of texts: `words`, each once; `codes`, the place in it of one token after the
    other; `ends`, where each text ends among them."""

    words: list[str]
    codes: NDArray[np.int32]
    ends: NDArray[np.int64]

    def counts(self, texts: slice = slice(None)) -> dict[str, int]:
        """How often each token comes in some of the texts."""
        found = [*self._split(self.codes)[texts], np.empty(0, np.int32)]
        counts = np.bincount(np.concatenate(found), minlength=len(self.words))
        return {word: n for word, n in zip(self.words, counts.tolist(), strict=True) if n}

    def numbers(self, numericalize: Numericalize) -> list[NDArray[np.int32]]:
        """The numbers of each text's tokens."""
        return self._split(numericalize(self.words)[self.codes])

    def _split(self, flat: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        return np.split(flat, self.ends[:-1]) if len(self.ends) else []


def tokenize_many(
    tokenizer: Tokenizer, texts: Sequence[str], workers: int | None = None
) -> Tokenized:
    """The tokens of `texts`, whatever the number of `workers`.

    Processes are forked where the system can do that and there is much text; `workers` says how
    many, 1 means none beside this one. A tokenizer with threads of its own (`many`) uses those.

    >>> from treadle.text.tokenize import SpaceTokenizer
    >>> found = tokenize_many(SpaceTokenizer(), ["a b", "b"])
    >>> found.words, found.codes.tolist(), found.ends.tolist()
    (['a', 'b'], [0, 1, 1], [2, 3])
    """
    if (lists := tokenizer.many(texts)) is not None:
        return _coded(lists)
    if workers is None:
        worth = sum(map(len, texts)) >= _WORTH
        workers = len(os.sched_getaffinity(0)) // processes_here() if worth and _can_fork() else 1
    pieces = _pieces(texts)
    if workers < 2 or len(pieces) < 2:
        return _coded([tokenizer(text) for text in texts])
    return _merged(_forked(tokenizer, texts, pieces, min(workers, len(pieces))))


def _can_fork() -> bool:
    import multiprocessing

    return hasattr(os, "sched_getaffinity") and "fork" in multiprocessing.get_all_start_methods()


def _pieces(texts: Sequence[str]) -> list[slice]:
    """Texts that are next to each other, some `_PIECE` characters of them at a time."""
    starts, size = [0], 0
    for i, text in enumerate(texts):
        if size >= _PIECE:
            starts.append(i)
            size = 0
        size += len(text)
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(texts)], strict=True)]


_given: tuple[Tokenizer, Sequence[str]]
"""What a forked process works on: it has the memory of its parent, nothing is sent."""


def _forked(
    tokenizer: Tokenizer, texts: Sequence[str], pieces: Sequence[slice], workers: int
) -> list[Tokenized]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    global _given
    _given = tokenizer, texts
    context = multiprocessing.get_context("fork")
    try:
        with warnings.catch_warnings(), ProcessPoolExecutor(workers, context) as pool:
            # of threads that a child lacks: it runs nothing but the tokenizer
            warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
            return list(pool.map(_one_piece, pieces))
    finally:
        del _given


def _one_piece(piece: slice) -> Tokenized:
    tokenizer, texts = _given
    return _coded([tokenizer(text) for text in texts[piece]])


def _coded(lists: Sequence[Sequence[str]]) -> Tokenized:
    places: dict[str, int] = {}
    codes = [places.setdefault(token, len(places)) for tokens in lists for token in tokens]
    ends = np.fromiter(accumulate(map(len, lists)), np.int64)
    return Tokenized(list(places), np.array(codes, np.int32), ends)


def _merged(parts: Sequence[Tokenized]) -> Tokenized:
    places: dict[str, int] = {}
    codes, ends, total = [], [], 0
    for part in parts:
        here = [places.setdefault(word, len(places)) for word in part.words]
        codes.append(np.array(here, np.int32)[part.codes])
        ends.append(part.ends + total)
        total += len(part.codes)
    return Tokenized(list(places), np.concatenate(codes), np.concatenate(ends))
