"""Byte-pair encoding, by the library tokenizers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from treadle.errors import DataError, UsageError
from treadle.registry import register
from treadle.text.tokenize import BOS, SPECIAL, Tokenizer

__all__ = ["BPETokenizer"]


@register
class BPETokenizer(Tokenizer):
    """Pieces of words that are learnt from the training texts (arXiv 1508.07909), of bytes, so that
    no character is unknown.

    Needs the library tokenizers (`pip install treadle[bpe]`), whose threads it uses.

    - `vocab_sz`: how many pieces to learn, special tokens included.
    - `min_freq`: how often a pair comes that is made a piece.
    - `json`: a tokenizer that was trained already, as the text of a tokenizer.json (`from_file`).
    - `add_bos`: put `xxbos` before a document.

    Raises:
        UsageError: if the library is missing, or texts are given before it was trained.
        DataError: for a `json` that the library does not read.
    """

    def __init__(
        self,
        vocab_sz: int = 10000,
        min_freq: int = 2,
        json: str | None = None,
        add_bos: bool = True,
    ) -> None:
        self.vocab_sz, self.min_freq, self.json, self.add_bos = vocab_sz, min_freq, json, add_bos
        self._made: Any = None if json is None else _read(json)
        self.vocab = None if json is None else _pieces_of(self._made)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], add_bos: bool = True) -> Self:
        """The tokenizer in a tokenizer.json. Raises `DataError` where it cannot be read."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"The tokenizer {path} cannot be read ({error}).") from error
        return cls(json=text, add_bos=add_bos)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a tokenizer.json, which the library and `from_file` read."""
        file = Path(path)
        file.write_text(str(self._known().to_str(pretty=True)), encoding="utf-8")
        return file

    def as_arguments(self) -> dict[str, Any]:
        """The arguments that make the tokenizer as it is now, with the pieces it learned."""
        return {
            "vocab_sz": self.vocab_sz,
            "min_freq": self.min_freq,
            "json": self.json,
            "add_bos": self.add_bos,
        }

    def trained(self, texts: Sequence[str]) -> BPETokenizer:
        """The tokenizer that has learnt its pieces of `texts`, unless it has learnt them before."""
        if self.json is not None:
            return self
        tokenizers = _library()
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=self.vocab_sz,
            min_frequency=self.min_freq,
            special_tokens=list(SPECIAL),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        made.train_from_iterator(texts, trainer)
        return BPETokenizer(self.vocab_sz, self.min_freq, made.to_str(), self.add_bos)

    def __call__(self, text: str) -> list[str]:
        return self._with_bos(self._known().encode(text, add_special_tokens=False).tokens)

    def many(self, texts: Sequence[str]) -> list[list[str]]:
        found = self._known().encode_batch(list(texts), add_special_tokens=False)
        return [self._with_bos(one.tokens) for one in found]

    def detokenize(self, tokens: Iterable[str]) -> str:
        made = self._known()
        ids = [made.token_to_id(token) for token in tokens if token not in SPECIAL]
        return str(made.decode([number for number in ids if number is not None]))

    def _with_bos(self, tokens: list[str]) -> list[str]:
        return [BOS, *tokens] if self.add_bos else tokens

    def _known(self) -> Any:
        if self._made is None:
            raise UsageError(
                "This BPETokenizer has not learnt its pieces yet; make loaders with it, call "
                "trained(texts), or read one by BPETokenizer.from_file(path)."
            )
        return self._made


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UsageError(
            f"BPETokenizer needs the library tokenizers ({error}); install it: "
            "`pip install treadle[bpe]`."
        ) from error
    return tokenizers


def _read(json: str) -> Any:
    try:
        return _library().Tokenizer.from_str(json)
    except UsageError:
        raise
    except Exception as error:  # the library has no class of its own for this
        raise DataError(f"The text of a tokenizer.json is none ({error}).") from error


def _pieces_of(made: Any) -> list[str]:
    """All tokens, in the order of their numbers."""
    numbers: dict[str, int] = made.get_vocab(with_added_tokens=True)
    return sorted(numbers, key=numbers.__getitem__)
