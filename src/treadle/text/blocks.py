"""TextBlock: texts as elements of samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treadle.data import Block
from treadle.data.blocks import Labelled
from treadle.errors import DataError, UsageError
from treadle.registry import register
from treadle.text.files import text_of
from treadle.text.numericalize import Numericalize, make_vocab
from treadle.text.scores import TokenCrossEntropy
from treadle.text.tokenize import Tokenizer
from treadle.text.tokenize_many import Tokenized, tokenize_many
from treadle.text.tokenize_words import WordTokenizer

__all__ = ["TextBlock"]

Texts = list[tuple[Any, str]]
"""Pairs of what a getter returned and the text that it is or names."""


@register
class TextBlock(Block):
    """A text as the numbers of its tokens, int32 of shape (N,). A text is a str; a `Path` is a
    file, read as UTF-8.

    - `tok_tfm`: the tokenizer; None means `WordTokenizer()`.
    - `vocab`: the tokens, in the order of their numbers; None takes those of the training texts
      that come `min_freq` times or more, at most `max_vocab` (see `make_vocab`), or all of a
      tokenizer that says which there are.
    - `is_lm`: for a language model (`LMLoader`, of `seq_len` tokens a batch); otherwise documents
      are sorted by length and padded (`SortedLoader`).
    - `backwards`: the tokens of each document from the last to the first.
    - `errors`: "strict", or "replace" for files that are not UTF-8 (see `text_of`).

    All texts are tokenized once, when the loaders are made, by all CPUs; their numbers stay in
    memory. `unknown` then tells for each part how many tokens the vocab lacks, and of how many.

    An empty document is its `xxbos`, and a warning where documents are classified. One without any
    token is an error there, and nothing to a language model.

    >>> block = TextBlock(min_freq=1).setup([("One two", 0), ("two", 1)], [("three", 2)])
    >>> block.vocab[9:], block.unknown
    (['two', 'one'], {'training': (0, 6), 'validation': (1, 2)})
    >>> block.decode(block.encode("Two one"))
    'Two one'
    """

    def __init__(
        self,
        tok_tfm: Tokenizer | None = None,
        vocab: Sequence[str] | None = None,
        is_lm: bool = False,
        seq_len: int = 72,
        backwards: bool = False,
        min_freq: int = 3,
        max_vocab: int = 60000,
        errors: str = "strict",
    ) -> None:
        self.tokenizer = WordTokenizer() if tok_tfm is None else tok_tfm
        if not isinstance(self.tokenizer, Tokenizer):
            raise UsageError(
                f"TextBlock(tok_tfm={tok_tfm!r}): expected a tokenizer, such as WordTokenizer(), "
                "SpaceTokenizer(), BPETokenizer() or a Tokenizer of yours."
            )
        if errors not in ("strict", "replace"):
            raise UsageError(f"TextBlock(errors={errors!r}): expected 'strict' or 'replace'.")
        self.is_lm, self.seq_len, self.backwards = is_lm, seq_len, backwards
        self.min_freq, self.max_vocab, self.errors = min_freq, max_vocab, errors
        self.unknown: dict[str, tuple[int, int]] = {}
        self._numericalize: Numericalize | None = None
        self._known: dict[Any, NDArray[np.int32]] = {}
        if vocab is not None:
            self._take(vocab)

    def _take(self, vocab: Sequence[str]) -> None:
        self._numericalize = Numericalize(vocab, self.tokenizer.unk)
        self.vocab = self._numericalize.vocab

    def as_arguments(self) -> dict[str, Any]:
        """The arguments that make the block as it is now, with its vocab."""
        return {
            "tok_tfm": self.tokenizer,
            "vocab": self.vocab,
            "is_lm": self.is_lm,
            "seq_len": self.seq_len,
            "backwards": self.backwards,
            "min_freq": self.min_freq,
            "max_vocab": self.max_vocab,
            "errors": self.errors,
        }

    @property
    def numericalize(self) -> Numericalize:
        """Tokens to numbers. Raises `UsageError` before the vocab is known."""
        if self._numericalize is None:
            raise UsageError(
                "The vocab of this TextBlock is not known yet; make loaders of it, or give vocab=."
            )
        return self._numericalize

    @property
    def pad_id(self) -> int | None:
        """The number of the token that fills up a document, or None."""
        pad = self.tokenizer.pad
        return None if pad is None else self.numericalize.id_of(pad)

    @property
    def loss_func(self) -> Callable[..., Any]:
        """`TokenCrossEntropy()`: of a language model, whose target is the text itself."""
        return TokenCrossEntropy()

    @property
    def loader_types(self) -> tuple[type, type]:
        from treadle.text.dataloaders import TextDataLoaders
        from treadle.text.lm_loader import LMLoader
        from treadle.text.sorted_loader import SortedLoader

        return (LMLoader if self.is_lm else SortedLoader), TextDataLoaders

    def setup(self, train: Labelled, valid: Labelled) -> TextBlock:
        """The block that knows the texts: a trained tokenizer, the vocab, and all numbers.

        What cannot be read is left to the loaders, which name it or skip it.
        """
        block = copy(self)
        block._known, block.unknown = {}, {}
        parts = {"training": self._texts(train), "validation": self._texts(valid)}
        if not self.is_lm:
            _warn_of_empty(parts)
        texts = [text for part in parts.values() for _, text in part]
        n_train = len(parts["training"])
        if self._numericalize is None:
            block.tokenizer = self.tokenizer.trained(texts[:n_train])
        found = tokenize_many(block.tokenizer, texts)
        if self._numericalize is None:
            block._take(block._made_vocab(found, n_train))
        block._keep(parts, found)
        return block

    def _texts(self, part: Labelled) -> Texts:
        found = []
        for value, _ in part:
            with suppress(DataError):
                found.append((value, text_of(value, self.errors)))
        return found

    def _made_vocab(self, found: Tokenized, n_train: int) -> list[str]:
        special, own = self.tokenizer.special, self.tokenizer.vocab
        if own is not None:
            return [*dict.fromkeys([*special, *own])]
        return make_vocab(found.counts(slice(n_train)), self.min_freq, self.max_vocab, special)

    def _keep(self, parts: dict[str, Texts], found: Tokenized) -> None:
        all_numbers = iter(found.numbers(self.numericalize))
        for part, texts in parts.items():
            unknown = total = 0
            for (value, _), numbers in zip(texts, all_numbers, strict=False):
                unknown += int((numbers == self.numericalize.unk_id).sum())
                total += len(numbers)
                self._known[value] = numbers[::-1].copy() if self.backwards else numbers
            self.unknown[part] = unknown, total

    def encode(self, value: Any) -> NDArray[np.int32]:
        """The numbers. Raises `DataError` for what is no text."""
        try:
            numbers = self._known.get(value)
        except TypeError:  # nothing that could be known
            numbers = None
        if numbers is None:
            numbers = self.numericalize(self.tokenizer(text_of(value, self.errors)))
            numbers = numbers[::-1].copy() if self.backwards else numbers
        if not len(numbers) and not self.is_lm:
            raise DataError(
                "A document has no token; expected one at least. Leave empty documents out, or "
                "give the tokenizer a token for their beginning (bos)."
            )
        return numbers

    def decode(self, element: Any) -> str:
        """The text that the numbers stand for, without padding."""
        numbers = [int(number) for number in element]
        return self.tokenizer.detokenize(self.numericalize.decode(numbers[:: self._step]))

    def __repr__(self) -> str:
        known = "no vocab yet" if self.vocab is None else f"{len(self.vocab)} tokens"
        kind = "of a language model, " if self.is_lm else ""
        return f"TextBlock({kind}{type(self.tokenizer).__name__}, {known})"

    @property
    def _step(self) -> int:
        return -1 if self.backwards else 1


def _warn_of_empty(parts: dict[str, Texts]) -> None:
    empty = [value for part in parts.values() for value, text in part if not text.strip()]
    if empty:
        n = sum(map(len, parts.values()))
        warnings.warn(
            f"{len(empty)} of {n} documents are empty, for example {empty[0]!r}: nothing can be "
            "learnt from them.",
            stacklevel=5,
        )
