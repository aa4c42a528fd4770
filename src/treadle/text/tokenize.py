"""Text to tokens: what a tokenizer is, and the simplest one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from treadle.errors import UsageError
from treadle.registry import register

__all__ = [
    "BOS",
    "EOS",
    "FLD",
    "PAD",
    "SPECIAL",
    "TK_MAJ",
    "TK_REP",
    "TK_UP",
    "TK_WREP",
    "UNK",
    "SpaceTokenizer",
    "Tokenizer",
]

UNK, PAD, BOS, EOS, FLD = "xxunk", "xxpad", "xxbos", "xxeos", "xxfld"
TK_REP, TK_WREP, TK_UP, TK_MAJ = "xxrep", "xxwrep", "xxup", "xxmaj"

SPECIAL = (UNK, PAD, BOS, EOS, FLD, TK_REP, TK_WREP, TK_UP, TK_MAJ)
"""Tokens that stand for no word of their own; they come first in a vocabulary, in this order."""


class Tokenizer(ABC):
    """Makes tokens of a text, and a text of tokens.

    Registered subclasses (`treadle.register`) are kept by an export.
    """

    unk: str = UNK
    """What stands for a token that the vocabulary lacks."""
    pad: str | None = PAD
    """What fills up a document in a batch."""
    special: Sequence[str] = SPECIAL
    """The tokens that come first in a vocabulary, whatever the texts hold."""
    vocab: list[str] | None = None
    """All tokens, where the tokenizer itself says which there are."""

    @abstractmethod
    def __call__(self, text: str) -> list[str]:
        """The tokens of a document."""

    def detokenize(self, tokens: Iterable[str]) -> str:
        """The tokens as a text to be read."""
        return " ".join(token for token in tokens if token != self.pad)

    def many(self, texts: Sequence[str]) -> list[list[str]] | None:
        """The tokens of all `texts` by threads of its own, or None where it has none."""
        return None

    def trained(self, texts: Sequence[str]) -> Tokenizer:
        """The tokenizer that knows the training texts, for one that learns from them."""
        return self


@register
class SpaceTokenizer(Tokenizer):
    """Takes the tokens as they stand, with whitespace between them.

    - `unk`, `pad`, `bos`, `eos`: the tokens for what is unknown, for padding, at the beginning of a
      document and at the end of each line. None leaves one out; documents can only be classified
      with a `pad`. They come first in a vocabulary, in this order.

    >>> SpaceTokenizer()("one two , three")
    ['one', 'two', ',', 'three']
    >>> wikitext = SpaceTokenizer(unk="<unk>", pad=None, eos="<eos>")
    >>> wikitext(" = Title = \\n \\n The <unk> . \\n")
    ['=', 'Title', '=', '<eos>', '<eos>', 'The', '<unk>', '.', '<eos>']
    """

    def __init__(
        self,
        unk: str = UNK,
        pad: str | None = PAD,
        bos: str | None = None,
        eos: str | None = None,
    ) -> None:
        self.unk, self.pad, self.bos, self.eos = unk, pad, bos, eos
        self.special = tuple(token for token in (unk, pad, bos, eos) if token is not None)
        if len(set(self.special)) < len(self.special) or not all(self.special):
            raise UsageError(
                f"SpaceTokenizer got the special tokens {self.special}; expected different ones, "
                "none of them empty."
            )

    def as_arguments(self) -> dict[str, Any]:
        """The arguments that make the tokenizer."""
        return {"unk": self.unk, "pad": self.pad, "bos": self.bos, "eos": self.eos}

    def __call__(self, text: str) -> list[str]:
        tokens = [] if self.bos is None else [self.bos]
        if self.eos is None:
            return tokens + text.split()
        for line in text.removesuffix("\n").split("\n") if text else ():
            tokens += line.split()
            tokens.append(self.eos)
        return tokens
