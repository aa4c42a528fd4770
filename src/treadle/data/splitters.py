"""Splitters: functions from the items to (indices to train on, indices to validate on)."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from treadle.data.blocks.base import is_missing
from treadle.data.describe import name_of
from treadle.data.getters import ColReader
from treadle.data.table import Column, Table, as_items
from treadle.errors import DataError, UsageError
from treadle.world import world

__all__ = [
    "ColSplitter",
    "FileSplitter",
    "FuncSplitter",
    "GrandparentSplitter",
    "IndexSplitter",
    "MaskSplitter",
    "RandomSplitter",
    "Splitter",
    "TrainTestSplitter",
]

Splitter = Callable[[Sequence[Any]], tuple[Sequence[int], Sequence[int]]]
"""What `DataBlock(splitter=)` takes: items -> (training indices, validation indices)."""


def GrandparentSplitter(
    train_name: str | tuple[str, ...] = "train", valid_name: str | tuple[str, ...] = "valid"
) -> Splitter:
    """Split files by the name of the folder two levels above: `train/cat/1.jpg`.

    Either argument may be a tuple of names. Files of other folders are in neither part. The
    splitter raises `DataError` where a part is empty; it names the folders that were found.

    >>> GrandparentSplitter(valid_name="val")(["d/train/cat/1.jpg", "d/val/cat/2.jpg"])
    ([0], [1])
    """

    def split(items: Sequence[Any]) -> tuple[list[int], list[int]]:
        folders = (os.path.dirname(os.path.dirname(os.fspath(item))) for item in items)  # noqa: PTH120  (as in parent_label)
        names = [os.path.basename(folder) for folder in folders]  # noqa: PTH119
        parts = []
        for argument, wanted in (("train_name", train_name), ("valid_name", valid_name)):
            accepted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
            part = [index for index, name in enumerate(names) if name in accepted]
            if not part:
                found = ", ".join(repr(name) for name in sorted(set(names))) or "none"
                raise DataError(
                    f"GrandparentSplitter found no item under {argument}={wanted!r}; the folders "
                    f"two levels above the items are {found}. Give the right one as "
                    f"GrandparentSplitter({argument}=...)."
                )
            parts.append(part)
        return parts[0], parts[1]

    return split


def RandomSplitter(valid_pct: float = 0.2, seed: int | None = None) -> Splitter:
    """Validate on a random `valid_pct` (0 to 1) of the items, rounded down.

    Where that leaves none, though `valid_pct` is not 0, a warning says so, as other splitters do.

    With a `seed` the split depends on nothing else, and is the one that fastai makes of the same
    number of items; torch's global generator is left alone. Without one it is drawn from that, and
    is the same in all processes of a run.

    >>> RandomSplitter(0.5, seed=42)(["a", "b", "c", "d"])
    ([0, 1], [2, 3])
    """
    if not 0 <= valid_pct < 1:
        raise UsageError(
            f"RandomSplitter got valid_pct={valid_pct!r}; expected 0 <= valid_pct < 1."
        )

    def split(items: Sequence[Any]) -> tuple[list[int], list[int]]:
        world()  # from here on all processes draw alike
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        order: list[int] = torch.randperm(len(items), generator=generator).tolist()
        cut = int(valid_pct * len(items))
        if valid_pct > 0 and cut == 0:
            _warn_of_none(f"RandomSplitter(valid_pct={valid_pct})", items)
        return order[cut:], order[:cut]

    return split


def TrainTestSplitter(
    test_size: float = 0.2,
    random_state: int | None = None,
    stratify: Sequence[Hashable] | Callable[[Any], Hashable] | None = None,
    train_size: float | None = None,
    shuffle: bool = True,
) -> Splitter:
    """Split by scikit-learn's `train_test_split`, whose arguments these are.

    `stratify` gives each class the same share of both parts: a function item -> class (such as
    `parent_label`), or the classes of the items in their order. Without a `random_state` it is
    drawn from torch's global generator.

    The splitter raises `DataError` where a class has fewer than two items (it names the class), or
    where scikit-learn refuses.

    >>> from treadle.data import parent_label
    >>> items = ["a/1", "a/2", "b/1", "b/2"]
    >>> train, valid = TrainTestSplitter(0.5, random_state=0, stratify=parent_label)(items)
    >>> sorted(parent_label(items[index]) for index in valid)
    ['a', 'b']
    """

    def split(items: Sequence[Any]) -> tuple[list[int], list[int]]:
        from sklearn.model_selection import train_test_split

        classes = _classes_of(items, stratify)
        seed = random_state
        if shuffle and seed is None:
            world()  # from here on all processes draw alike
            seed = int(torch.randint(2**32, ()).item())
        try:
            train, valid = train_test_split(
                np.arange(len(items)),
                test_size=test_size,
                train_size=train_size,
                random_state=seed if shuffle else None,
                shuffle=shuffle,
                stratify=classes,
            )
        except ValueError as error:
            raise DataError(
                f"TrainTestSplitter(test_size={test_size}, train_size={train_size}) cannot split "
                f"{len(items)} items: {error}"
            ) from error
        return train.tolist(), valid.tolist()

    return split


def _classes_of(
    items: Sequence[Any], stratify: Sequence[Hashable] | Callable[[Any], Hashable] | None
) -> list[int] | None:
    """The classes of the items as numbers, so that those of several types are all right."""
    if stratify is None:
        return None
    labels = [stratify(item) for item in as_items(items)] if callable(stratify) else list(stratify)
    if len(labels) != len(items):
        raise DataError(
            f"TrainTestSplitter(stratify=...) got {len(labels)} classes for {len(items)} items; "
            "expected one for each, or a function of an item."
        )
    for label, count in Counter(labels).items():
        if count < 2:
            raise DataError(
                f"The class {label!r} has one item (number {labels.index(label)}), which cannot "
                "be in both parts. Add another, leave it out, or split without stratify."
            )
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return [numbers[label] for label in labels]


def IndexSplitter(valid_idx: int | Iterable[int]) -> Splitter:
    """Validate on the items at the places `valid_idx`, train on the others.

    >>> IndexSplitter([1, -1])("abcd")
    ([0, 2], [1, 3])
    """
    wanted = [valid_idx] if isinstance(valid_idx, int) else [int(index) for index in valid_idx]

    def split(items: Sequence[Any]) -> tuple[list[int], list[int]]:
        valid = np.zeros(len(items), bool)
        for index in wanted:
            if not -len(items) <= index < len(items):
                raise DataError(
                    f"IndexSplitter got the index {index}; there are {len(items)} items, expected "
                    f"0 to {len(items) - 1}."
                )
            valid[index] = True
        return _parts(valid)

    return split


def MaskSplitter(mask: Sequence[bool]) -> Splitter:
    """Validate on the items for which `mask` is true, train on the others.

    >>> MaskSplitter([False, True, False])("abc")
    ([0, 2], [1])
    """

    def split(items: Sequence[Any]) -> tuple[list[int], list[int]]:
        if len(mask) != len(items):
            raise DataError(
                f"MaskSplitter got a mask of {len(mask)} values for {len(items)} items; expected "
                "one for each."
            )
        return _parts([bool(value) for value in mask])

    return split


def FuncSplitter(func: Callable[[Any], Any]) -> Splitter:
    """Validate on the items for which `func(item)` is true, train on the others.

    >>> FuncSplitter(str.isupper)(["a", "B", "c"])
    ([0, 2], [1])
    """

    def split(items: Sequence[Any]) -> tuple[list[int], list[int]]:
        valid = [bool(func(item)) for item in as_items(items)]
        if not any(valid):
            _warn_of_none(f"FuncSplitter({name_of(func)})", items)
        return _parts(valid)

    return split


def FileSplitter(fname: str | os.PathLike[str]) -> Splitter:
    """Validate on the files whose names stand in the text file `fname`, one a line.

    Only names count, not the folders before them. The splitter raises `DataError` where the file
    cannot be read, and for names that none of the items has.
    """

    def split(items: Sequence[Any]) -> tuple[list[int], list[int]]:
        try:
            text = Path(fname).read_text("utf-8-sig")
        except OSError as error:
            raise DataError(f"The list {fname} cannot be read ({error.strerror}).") from error
        except UnicodeError as error:
            raise DataError(f"The list {fname} is not UTF-8 ({error}).") from error
        listed = {Path(line.strip()).name for line in text.splitlines() if line.strip()}
        names = [Path(item).name for item in items]
        unknown = sorted(listed.difference(names))
        if unknown:
            raise DataError(
                f"{len(unknown)} of {len(listed)} names in {fname} are of no item, for example "
                f"{unknown[0]!r}. Mend the list or give the folder that holds these files."
            )
        if not listed:
            _warn_of_none(f"FileSplitter({str(fname)!r})", items)
        return _parts([name in listed for name in names])

    return split


def ColSplitter(col: Column = "is_valid", on: Any = None) -> Splitter:
    """Validate on the rows whose column `col` is true, or `on`, or one of `on` if that is a list.

    The items are a data frame or rows, as for `ColReader`. As true or false count booleans, 1 and
    0, and the words true, false, yes and no in any case.

    >>> ColSplitter("part", on="dev")([{"part": "train"}, {"part": "dev"}])
    ([0], [1])
    """

    def split(items: Sequence[Any]) -> tuple[list[int], list[int]]:
        rows = as_items(items)
        cells = rows.column(col) if isinstance(rows, Table) else [*map(ColReader(col), rows)]
        if on is None:
            truths = [_truth(col, cell, index) for index, cell in enumerate(cells)]
            if not any(truths):
                _warn_of_none(f"ColSplitter({col!r})", items)
            return _parts(truths)
        accepted = list(on) if isinstance(on, list | tuple | set | frozenset) else [on]
        valid = [cell in accepted for cell in cells]
        if not any(valid):
            found = ", ".join(repr(cell) for cell in list(dict.fromkeys(cells))[:10])
            raise DataError(
                f"ColSplitter({col!r}, on={on!r}): no row has it; the column holds {found}."
            )
        return _parts(valid)

    return split


_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _truth(col: Column, cell: Any, index: int) -> bool:
    truth = None if is_missing(cell) else _TRUTHS.get(str(cell).lower().removesuffix(".0"))
    if truth is None:
        raise DataError(
            f"The column {col!r} holds {cell!r} in row {index}, which is neither true nor false. "
            f"ColSplitter({col!r}, on={cell!r}) validates on the rows that hold it."
        )
    return truth


def _warn_of_none(splitter: str, items: Sequence[Any]) -> None:
    warnings.warn(
        f"{splitter} leaves none of {len(items)} items to validate on: there will be no "
        "validation loss and no metric.",
        stacklevel=6,
    )


def _parts(valid: Sequence[bool] | np.ndarray[Any, Any]) -> tuple[list[int], list[int]]:
    mask = np.asarray(valid, bool)
    return np.flatnonzero(~mask).tolist(), np.flatnonzero(mask).tolist()
