"""Loaders of text in one call: from a folder, a table, or a list of texts."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

import torch

from treadle.data import (
    Block,
    CategoryBlock,
    ColReader,
    ColSplitter,
    DataBlock,
    DataLoaders,
    IndexSplitter,
    MultiCategoryBlock,
    Order,
    RandomSplitter,
    Table,
    parent_label,
    read_csv,
)
from treadle.data.table import as_items
from treadle.errors import UsageError
from treadle.text.blocks import TextBlock
from treadle.text.fields import FieldReader
from treadle.text.files import get_text_files
from treadle.text.show import print_texts
from treadle.text.tokenize import Tokenizer

__all__ = ["TextDataLoaders"]

Column = str | int
PathLike = str | os.PathLike[str]
Splitter = Callable[[Any], tuple[Sequence[int], Sequence[int]]]


class TextArguments(TypedDict, total=False):
    """What each of the factories passes on: `TextBlock`'s, and `DataBlock.dataloaders`'s."""

    tok_tfm: Tokenizer | None
    seq_len: int
    backwards: bool
    min_freq: int
    max_vocab: int
    errors: str
    bs: int
    global_bs: int | None
    val_bs: int | None
    num_workers: int | None
    device: torch.device | str | None
    shuffle_train: bool
    sampler: Order | None
    drop_last: bool
    on_error: str


_OF_BLOCK = ("tok_tfm", "seq_len", "backwards", "min_freq", "max_vocab", "errors")


class TextDataLoaders(DataLoaders):
    """Loaders of text, made in one call. The names and meanings of the arguments are fastai's.

    With `is_lm` they are those of a language model (`LMLoader`: batches (x, y) of int64 (bs,
    seq_len)), otherwise those of a classifier (`SortedLoader`: (x, lengths, y)). All of them take
    `text_vocab`, the tokens of a language model's loaders (`dls_lm.vocab`) for a classifier that
    begins with its encoder; `vocab`, the classes; `seed`, which determines the random split and
    the order; `path`, where a learner saves; as further keywords those of `TextBlock` (`tok_tfm`,
    `seq_len`, `backwards`, `min_freq`, `max_vocab`, `errors`) and of `DataBlock.dataloaders`
    (`bs`, `global_bs`, `val_bs`, `device`, `shuffle_train`, `drop_last`, `on_error`, ...).

    >>> texts = ["a good film", "a bad film", "good", "bad", "bad film"] * 4
    >>> labels = ["pos", "neg", "pos", "neg", "neg"] * 4
    >>> dls = TextDataLoaders.from_lists(texts, labels, seed=1, bs=4, device="cpu")
    >>> dls.vocab[1], [tuple(part.shape) for part in dls.valid.one_batch()]
    (['neg', 'pos'], [(4, 4), (4,), (4,)])
    """

    @classmethod
    def from_dblock(
        cls, dblock: DataBlock, source: Any, path: PathLike = ".", **kwargs: Any
    ) -> Self:
        """The loaders that a `DataBlock` with a `TextBlock` makes of `source`."""
        dls = dblock.dataloaders(source, path=path, **kwargs)
        return cls(*dls.loaders, path=path)

    @classmethod
    def from_folder(
        cls,
        path: PathLike,
        train: str = "train",
        valid: str = "valid",
        valid_pct: float | None = None,
        seed: int | None = None,
        vocab: Sequence[Hashable] | None = None,
        text_vocab: Sequence[str] | None = None,
        is_lm: bool = False,
        splitter: Splitter | None = None,
        **kwargs: Unpack[TextArguments],
    ) -> Self:
        """Loaders of the .txt files `path/train/<class>/*` and `path/valid/<class>/*`; with
        `valid_pct` or a `splitter` of `path/<class>/*`. A language model needs no class folders.

        Raises `DataError` for folders that are missing or hold no text.
        """
        split = valid_pct is None and splitter is None
        at_random = RandomSplitter(0.2 if valid_pct is None else valid_pct, seed)
        block, rest = _text_block(text_vocab, is_lm, kwargs)
        dblock = DataBlock(
            blocks=(block,) if is_lm else (block, CategoryBlock(vocab)),
            get_items=partial(get_text_files, folders=[train, valid] if split else None),
            splitter=splitter or (_ByFolder(path, train, valid) if split else at_random),
            get_y=None if is_lm else parent_label,
        )
        return cls.from_dblock(dblock, path, path, seed=seed, **rest)

    @classmethod
    def from_lists(
        cls,
        texts: Sequence[str],
        labels: Sequence[Any] | None = None,
        valid_texts: Sequence[str] | None = None,
        valid_labels: Sequence[Any] | None = None,
        path: PathLike = ".",
        valid_pct: float = 0.2,
        seed: int | None = None,
        y_block: Block | type[Block] | None = None,
        vocab: Sequence[Hashable] | None = None,
        text_vocab: Sequence[str] | None = None,
        **kwargs: Unpack[TextArguments],
    ) -> Self:
        """Loaders of `texts`, with `labels` in the same order; without labels those of a language
        model.

        `valid_texts` and `valid_labels` validate; without them a random `valid_pct` of `texts`.
        `y_block` says what a label is, where it is no class. Texts may be `Path`s to files.
        """
        both = [*texts, *(valid_texts or ())]
        for name, its, of in (("", labels, texts), ("valid_", valid_labels, valid_texts or ())):
            if labels is not None and len(its or ()) != len(of):
                raise UsageError(
                    f"from_lists got {len(of)} {name}texts and {len(its or ())} {name}labels; "
                    "expected a label for each text."
                )
        block, rest = _text_block(text_vocab, labels is None, kwargs)
        all_labels = [None] * len(both) if labels is None else [*labels, *(valid_labels or ())]
        table = Table(["text", "label"], list(zip(both, all_labels, strict=True)))
        dblock = DataBlock(
            blocks=(block,) if labels is None else (block, y_block or CategoryBlock(vocab)),
            splitter=RandomSplitter(valid_pct, seed)
            if valid_texts is None
            else IndexSplitter(range(len(texts), len(both))),
            get_x=ColReader("text"),
            get_y=None if labels is None else ColReader("label"),
        )
        return cls.from_dblock(dblock, table, path, seed=seed, **rest)

    @classmethod
    def from_df(
        cls,
        df: Any,
        path: PathLike = ".",
        valid_pct: float = 0.2,
        seed: int | None = None,
        text_col: Column | Sequence[Column] = 0,
        label_col: Column | Sequence[Column] = 1,
        label_delim: str | None = None,
        y_block: Block | type[Block] | None = None,
        vocab: Sequence[Hashable] | None = None,
        text_vocab: Sequence[str] | None = None,
        is_lm: bool = False,
        valid_col: Column | None = None,
        **kwargs: Unpack[TextArguments],
    ) -> Self:
        """Loaders of the texts in a table: a pandas data frame, or a `Table` (`read_csv`).

        Several columns in `text_col` become one text, with `xxfld` and a number before each.
        `label_col`, `label_delim`, `y_block` and `valid_col` are those of
        `ImageDataLoaders.from_df`.

        Raises `DataError` for a column that is not there (with the nearest name) and for an empty
        cell.
        """
        several = label_delim is not None or (
            not isinstance(label_col, str | int) and len(label_col) > 1
        )
        block, rest = _text_block(text_vocab, is_lm, kwargs)
        kind = y_block or (MultiCategoryBlock(vocab=vocab) if several else CategoryBlock(vocab))
        dblock = DataBlock(
            blocks=(block,) if is_lm else (block, kind),
            splitter=RandomSplitter(valid_pct, seed)
            if valid_col is None
            else ColSplitter(valid_col),
            get_x=FieldReader(text_col),
            get_y=None if is_lm else ColReader(label_col, label_delim=label_delim),
        )
        return cls.from_dblock(dblock, as_items(df), path, seed=seed, **rest)

    @classmethod
    def from_csv(
        cls,
        path: PathLike,
        csv_fname: PathLike = "labels.csv",
        header: str | int | None = "infer",
        delimiter: str | None = None,
        quoting: Any = csv.QUOTE_MINIMAL,
        *,
        encoding: str = "utf-8-sig",
        **kwargs: Any,
    ) -> Self:
        """Loaders of the texts in the CSV file `path/csv_fname`; see `from_df`.

        `header`, `delimiter`, `quoting` and `encoding` are those of `read_csv`. pandas is not
        needed.
        """
        table = read_csv(Path(path, csv_fname), header, delimiter, quoting, encoding)
        return cls.from_df(table, path, **kwargs)

    @property
    def text_block(self) -> TextBlock:
        """The block of the texts, with the tokenizer and the vocab."""
        block: TextBlock = self.train_ds.blocks[0]
        return block

    def numericalize(self, text: str) -> list[int]:
        """The numbers of a text's tokens, as a model is given them."""
        numbers: list[int] = self.text_block.encode(text).tolist()
        return numbers

    def detokenize(self, numbers: Iterable[int]) -> str:
        """The text that tokens' numbers stand for."""
        return self.text_block.decode(numbers)

    def show_batch(self, max_n: int = 9, trunc_at: int = 150) -> None:  # type: ignore[override]
        """Print up to `max_n` rows of a training batch as a table: what the model reads, with
        what it is to answer. A text is cut after `trunc_at` tokens."""
        print_texts(self.train, self.train.one_batch(), max_n, trunc_at)

    def show_results(  # type: ignore[override]
        self, loader: Any, batch: Any, answers: torch.Tensor, max_n: int = 9
    ) -> None:
        """Print rows of a batch as a table, with what a model answered."""
        print_texts(loader, batch, max_n, 150, answers)


def _text_block(
    vocab: Sequence[str] | None, is_lm: bool, kwargs: TextArguments
) -> tuple[TextBlock, dict[str, Any]]:
    """The block, and the arguments that are left for the loaders."""
    given: dict[str, Any] = dict(kwargs)
    own = {name: given.pop(name) for name in _OF_BLOCK if name in given}
    return TextBlock(vocab=vocab, is_lm=is_lm, **own), given


class _ByFolder:
    """Files that lie anywhere in the folders `train` and `valid` of `path`."""

    def __init__(self, path: PathLike, train: str, valid: str) -> None:
        self.path, self.names = Path(path), (train, valid)

    def __call__(self, files: Sequence[Path]) -> tuple[list[int], list[int]]:
        inside = [file.relative_to(self.path).parts[0] for file in files]
        train, valid = ([i for i, at in enumerate(inside) if at == name] for name in self.names)
        return train, valid
