"""Loaders of images in one call: from a folder, a table, or a list of files."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Hashable, Sequence
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
    GrandparentSplitter,
    ImageBlock,
    MultiCategoryBlock,
    Order,
    RandomSplitter,
    RegexLabeller,
    RegressionBlock,
    Table,
    parent_label,
    read_csv,
)
from treadle.data.blocks import is_missing
from treadle.data.pipeline import Transforms
from treadle.data.table import as_items
from treadle.errors import UsageError
from treadle.vision.listing import check_files, check_folder, image_files_by_class

__all__ = ["ImageDataLoaders", "LoaderArguments"]

Column = str | int
PathLike = str | os.PathLike[str]


class LoaderArguments(TypedDict, total=False):
    """What each of the factories passes on to `DataBlock.dataloaders`."""

    bs: int
    global_bs: int | None
    val_bs: int | None
    num_workers: int | None
    device: torch.device | str | None
    shuffle_train: bool
    sampler: Order | None
    drop_last: bool
    cache: str | None
    on_error: str


class ImageDataLoaders(DataLoaders):
    """Loaders of images, made in one call. The names and meanings of the arguments are fastai's.

    All of them take `item_tfms` and `batch_tfms` (see `DataBlock`); `mode`, "RGB" or "L" (grey);
    `seed`, which determines the random split, the order and the augmentation; and as further
    keywords those of `DataBlock.dataloaders`: `bs`, `global_bs`, `val_bs`, `num_workers`,
    `device`, `shuffle_train`, `sampler`, `drop_last`, `cache`, `on_error`. `valid_pct` is the share
    of the items (0 to 1) that validates, chosen at random. `path` is also where a learner saves.

    Files that do not exist are an error before anything is read, unless `on_error="skip"`.
    """

    @classmethod
    def from_dblock(
        cls,
        dblock: DataBlock,
        source: Any,
        path: PathLike = ".",
        *,
        seed: int | None = None,
        **kwargs: Unpack[LoaderArguments],
    ) -> Self:
        """The loaders that a `DataBlock` makes of `source`."""
        dls = dblock.dataloaders(source, path=path, seed=seed, **kwargs)
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
        item_tfms: Transforms = None,
        batch_tfms: Transforms = None,
        *,
        mode: str = "RGB",
        **kwargs: Unpack[LoaderArguments],
    ) -> Self:
        """Loaders of `path/train/<class>/*` and `path/valid/<class>/*`; with `valid_pct` of
        `path/<class>/*` split at random.

        Raises `DataError` for folders that are missing or hold no images, for images outside a
        class folder, and for fewer than two classes. An empty class folder is a warning.
        """
        root = Path(path)
        folders = None if valid_pct is not None else (train, valid)
        for name in folders or ():
            check_folder(root, name)
        block = DataBlock(
            blocks=(ImageBlock(mode), CategoryBlock(vocab)),
            get_items=partial(image_files_by_class, folders=folders),
            splitter=GrandparentSplitter(train, valid)
            if valid_pct is None
            else RandomSplitter(valid_pct, seed),
            get_y=parent_label,
            item_tfms=item_tfms,
            batch_tfms=batch_tfms,
        )
        return cls.from_dblock(block, root, path, seed=seed, **kwargs)

    @classmethod
    def from_path_func(
        cls,
        path: PathLike,
        fnames: Sequence[PathLike],
        label_func: Callable[[Any], Any],
        valid_pct: float = 0.2,
        seed: int | None = None,
        item_tfms: Transforms = None,
        batch_tfms: Transforms = None,
        *,
        mode: str = "RGB",
        **kwargs: Unpack[LoaderArguments],
    ) -> Self:
        """Loaders of the files `fnames`, labelled by `label_func` of the path."""
        check_files([Path(name) for name in fnames], "fnames", kwargs.get("on_error"))
        block = DataBlock(
            blocks=(ImageBlock(mode), CategoryBlock),
            splitter=RandomSplitter(valid_pct, seed),
            get_y=label_func,
            item_tfms=item_tfms,
            batch_tfms=batch_tfms,
        )
        return cls.from_dblock(block, list(fnames), path, seed=seed, **kwargs)

    @classmethod
    def from_name_func(
        cls,
        path: PathLike,
        fnames: Sequence[PathLike],
        label_func: Callable[[str], Any],
        valid_pct: float = 0.2,
        seed: int | None = None,
        item_tfms: Transforms = None,
        batch_tfms: Transforms = None,
        *,
        mode: str = "RGB",
        **kwargs: Unpack[LoaderArguments],
    ) -> Self:
        """Loaders of the files `fnames`, labelled by `label_func` of the name without folders."""

        def get_y(item: PathLike) -> Any:
            return label_func(Path(item).name)

        return cls.from_path_func(
            path,
            fnames,
            get_y,
            valid_pct=valid_pct,
            seed=seed,
            item_tfms=item_tfms,
            batch_tfms=batch_tfms,
            mode=mode,
            **kwargs,
        )

    @classmethod
    def from_path_re(
        cls,
        path: PathLike,
        fnames: Sequence[PathLike],
        pat: str | re.Pattern[str],
        valid_pct: float = 0.2,
        seed: int | None = None,
        item_tfms: Transforms = None,
        batch_tfms: Transforms = None,
        *,
        mode: str = "RGB",
        **kwargs: Unpack[LoaderArguments],
    ) -> Self:
        """Loaders of the files `fnames`, labelled by the first group of `pat` in the path."""
        label = RegexLabeller(pat)
        return cls.from_path_func(
            path,
            fnames,
            label,
            valid_pct=valid_pct,
            seed=seed,
            item_tfms=item_tfms,
            batch_tfms=batch_tfms,
            mode=mode,
            **kwargs,
        )

    @classmethod
    def from_name_re(
        cls,
        path: PathLike,
        fnames: Sequence[PathLike],
        pat: str | re.Pattern[str],
        valid_pct: float = 0.2,
        seed: int | None = None,
        item_tfms: Transforms = None,
        batch_tfms: Transforms = None,
        *,
        mode: str = "RGB",
        **kwargs: Unpack[LoaderArguments],
    ) -> Self:
        """Loaders of the files `fnames`, labelled by the first group of `pat` in the name."""
        label = RegexLabeller(pat)
        return cls.from_name_func(
            path,
            fnames,
            label,
            valid_pct=valid_pct,
            seed=seed,
            item_tfms=item_tfms,
            batch_tfms=batch_tfms,
            mode=mode,
            **kwargs,
        )

    @classmethod
    def from_lists(
        cls,
        path: PathLike,
        fnames: Sequence[PathLike],
        labels: Sequence[Any],
        valid_pct: float = 0.2,
        seed: int | None = None,
        y_block: Block | type[Block] | None = None,
        item_tfms: Transforms = None,
        batch_tfms: Transforms = None,
        *,
        mode: str = "RGB",
        **kwargs: Unpack[LoaderArguments],
    ) -> Self:
        """Loaders of the files `fnames`, as they stand, with `labels` in the same order.

        `y_block` says what a label is; None takes it from the first: a list is several labels, a
        float a number, anything else a class.
        """
        if len(fnames) != len(labels):
            raise UsageError(
                f"from_lists got {len(fnames)} fnames and {len(labels)} labels; expected a label "
                "for each file."
            )
        table = Table(["fname", "label"], list(zip(map(Path, fnames), labels, strict=True)))
        check_files(table["fname"], "fnames", kwargs.get("on_error"))
        block = DataBlock(
            blocks=(ImageBlock(mode), y_block or _block_of(labels)),
            splitter=RandomSplitter(valid_pct, seed),
            get_x=ColReader("fname"),
            get_y=ColReader("label"),
            item_tfms=item_tfms,
            batch_tfms=batch_tfms,
        )
        return cls.from_dblock(block, table, path, seed=seed, **kwargs)

    @classmethod
    def from_df(
        cls,
        df: Any,
        path: PathLike = ".",
        valid_pct: float = 0.2,
        seed: int | None = None,
        fn_col: Column = 0,
        folder: PathLike | None = None,
        suff: str = "",
        label_col: Column | Sequence[Column] = 1,
        label_delim: str | None = None,
        y_block: Block | type[Block] | None = None,
        valid_col: Column | None = None,
        item_tfms: Transforms = None,
        batch_tfms: Transforms = None,
        *,
        mode: str = "RGB",
        **kwargs: Unpack[LoaderArguments],
    ) -> Self:
        """Loaders of the images that a table lists: a pandas data frame, or a `Table` (`read_csv`).

        The file of a row is `path/folder/<fn_col><suff>`, its label stands in `label_col`: text
        that `label_delim` splits, or several columns, are several labels. `y_block` says what a
        label is, where that is something else (`RegressionBlock`). Rows whose `valid_col` is true
        validate; without it a random `valid_pct`. Columns are given by name or by place.

        Raises `DataError` for a column that is not there (with the nearest name), an empty cell,
        and files that do not exist. Files that are listed twice are a warning.
        """
        table = as_items(df)
        where = Path(path) if folder is None else Path(path, folder)
        get_x = ColReader(fn_col, pref=where, suff=suff)
        check_files([get_x(row) for row in table], f"the column {fn_col!r}", kwargs.get("on_error"))
        several = label_delim is not None or (
            not isinstance(label_col, str | int) and len(label_col) > 1
        )
        block = DataBlock(
            blocks=(
                ImageBlock(mode),
                y_block or (MultiCategoryBlock if several else CategoryBlock),
            ),
            splitter=RandomSplitter(valid_pct, seed)
            if valid_col is None
            else ColSplitter(valid_col),
            get_x=get_x,
            get_y=ColReader(label_col, label_delim=label_delim),
            item_tfms=item_tfms,
            batch_tfms=batch_tfms,
        )
        return cls.from_dblock(block, table, path, seed=seed, **kwargs)

    @classmethod
    def from_csv(
        cls,
        path: PathLike,
        csv_fname: PathLike = "labels.csv",
        header: str | int | None = "infer",
        delimiter: str | None = None,
        quoting: Any = csv.QUOTE_MINIMAL,
        valid_pct: float = 0.2,
        seed: int | None = None,
        fn_col: Column = 0,
        folder: PathLike | None = None,
        suff: str = "",
        label_col: Column | Sequence[Column] = 1,
        label_delim: str | None = None,
        y_block: Block | type[Block] | None = None,
        valid_col: Column | None = None,
        item_tfms: Transforms = None,
        batch_tfms: Transforms = None,
        *,
        mode: str = "RGB",
        encoding: str = "utf-8-sig",
        **kwargs: Unpack[LoaderArguments],
    ) -> Self:
        """Loaders of the images that the CSV file `path/csv_fname` lists; see `from_df`.

        `header`, `delimiter`, `quoting` and `encoding` are those of `read_csv`. pandas is not
        needed.
        """
        return cls.from_df(
            read_csv(Path(path, csv_fname), header, delimiter, quoting, encoding),
            path,
            valid_pct=valid_pct,
            seed=seed,
            fn_col=fn_col,
            folder=folder,
            suff=suff,
            label_col=label_col,
            label_delim=label_delim,
            y_block=y_block,
            valid_col=valid_col,
            item_tfms=item_tfms,
            batch_tfms=batch_tfms,
            mode=mode,
            **kwargs,
        )


def _block_of(labels: Sequence[Any]) -> type[Block]:
    first = next((label for label in labels if not is_missing(label)), None)
    if isinstance(first, list | tuple | set | frozenset):
        return MultiCategoryBlock
    return RegressionBlock if isinstance(first, float) else CategoryBlock
