"""Samples that are dicts, or rows of a table: which columns are inputs, and which are targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treadle.data.blocks import Block, CategoryBlock, ImageBlock
from treadle.data.datasets import Dataset
from treadle.errors import DataError, UsageError, nearest
from treadle.losses import MSELossFlat

__all__ = ["Columns", "hugging_face", "hugging_face_columns", "hugging_face_dataset"]

INPUTS = "image images img pixel_values input inputs x features data".split()
TARGETS = "label labels target targets y".split()


@dataclass(frozen=True)
class Columns:
    """The names of inputs and targets; None goes by the usual names, where one fits.

    `parts` of a sample or a batch are its elements, inputs first. A tuple or list has them already,
    and anything else is an element by itself.

    >>> Columns.of("a", None).parts({"y": 1, "a": 2, "b": 3})
    (2, 1)
    """

    inputs: tuple[str, ...] | None
    targets: tuple[str, ...] | None

    @classmethod
    def of(cls, inputs: str | Sequence[str] | None, targets: str | Sequence[str] | None) -> Columns:
        """From what a user gives: a name, several, or None."""
        return cls(_names("inputs", inputs), _names("targets", targets))

    @property
    def n_inp(self) -> int | None:
        """How many elements are inputs, where that was given."""
        return None if self.inputs is None else len(self.inputs)

    def parts(self, value: Any) -> tuple[Any, ...]:
        """The elements of a sample or a batch. Raises `UsageError` where the names do not fit."""
        if isinstance(value, Mapping):
            known = self.among(value)
            return tuple(value[name] for name in (*known.inputs, *known.targets))
        return tuple(value) if isinstance(value, tuple | list) else (value,)

    def among(self, names: Iterable[str]) -> _Chosen:
        """The columns of these `names` that are meant."""
        names = list(names)
        for name in (*(self.inputs or ()), *(self.targets or ())):
            if name not in names:
                raise UsageError(f"There is no column {name!r}; {nearest(name, map(str, names))}")
        targets = self.targets
        if targets is None:
            targets = _usual("targets", TARGETS, [n for n in names if n not in (self.inputs or ())])
        inputs = self.inputs
        if inputs is None:
            inputs = _usual("inputs", INPUTS, [name for name in names if name not in targets])
        return _Chosen(inputs, targets)


@dataclass(frozen=True)
class _Chosen:
    inputs: tuple[str, ...]
    targets: tuple[str, ...]


def _names(argument: str, given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = (given,) if isinstance(given, str) else tuple(given)
    if argument == "inputs" and not names:
        raise UsageError("inputs=() names no column; expected at least one.")
    return names


def _usual(argument: str, usual: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """The one of `names` that is usual for inputs or targets; of one name alone that one."""
    fitting = [name for name in names if name in usual]
    if not fitting and argument == "inputs":
        fitting = list(names)
    if len(fitting) == 1:
        return (fitting[0],)
    raise UsageError(
        f"It is not clear which of the columns {', '.join(map(repr, names))} are {argument}; give "
        f'{argument}="...", the name of one or a list of several. (Batches of dicts: '
        f"DataLoaders(..., {argument}=...).)"
    )


# Data sets of Hugging Face: known by their module, so that nothing has to be imported


def hugging_face(source: Any) -> str | None:
    """The class's name, if `source` is of the package `datasets`."""
    kinds = [kind for kind in type(source).__mro__ if kind.__module__.startswith("datasets.")]
    names = {kind.__name__ for kind in kinds}
    return next((name for name in ("Dataset", "IterableDataset") if name in names), None)


def hugging_face_columns(source: Any, columns: Columns) -> Columns:
    """`columns` with what the types of the data set's columns tell: one that has classes is the
    target, one that has images is the input."""
    features = source.features or {}
    inputs, targets = columns.inputs, columns.targets
    if inputs is None:
        inputs = _only(features, "Image")
    if targets is None:
        targets = _only(features, "ClassLabel")
    known = Columns(inputs, targets)
    if not features:
        return known
    chosen = known.among(features)
    return Columns(chosen.inputs, chosen.targets)


def hugging_face_dataset(source: Any, columns: Columns) -> Dataset:
    """A data set of Hugging Face with a length, as one of blocks: its rows are the items."""
    columns = hugging_face_columns(source, columns)
    names = (*(columns.inputs or ()), *(columns.targets or ()))
    blocks = tuple(_block(name, source.features[name]) for name in names)
    cells = tuple(_Cell(source, name, b) for name, b in zip(names, blocks, strict=True))
    return Dataset(range(len(source)), cells, blocks, columns.n_inp or 1)


def _only(features: Mapping[str, Any], kind: str) -> tuple[str, ...] | None:
    found = [name for name, feature in features.items() if type(feature).__name__ == kind]
    return (found[0],) if len(found) == 1 else None


def _block(name: str, feature: Any) -> Block:
    kind = type(feature).__name__
    if kind == "Image":
        return ImageBlock()
    if kind == "ClassLabel":
        return CategoryBlock(vocab=feature.names)
    if getattr(feature, "dtype", None) in ("string", "large_string"):
        raise UsageError(
            f"The column {name!r} holds text, and a model takes numbers; let the data set's map() "
            "turn it into some."
        )
    return Numbers()


class Numbers(Block):
    """Numbers of any shape as they are; floats become float32."""

    @property
    def loss_func(self) -> Callable[..., Any]:
        """`MSELossFlat()`."""
        return MSELossFlat()

    def encode(self, value: Any) -> Any:
        array = np.asarray(value)
        return array.astype(np.float32 if array.dtype.kind == "f" else array.dtype)


class _Cell:
    """A getter: of the index of a row, what the row has in one column; no other is read."""

    def __init__(self, source: Any, name: str, block: Block) -> None:
        kind = "numpy" if isinstance(block, Numbers) else None
        self.view = source.select_columns([name]).with_format(kind)
        self.name, self.vocab = name, block.vocab

    def __call__(self, index: int) -> Any:
        value = self.view[index][self.name]
        if self.vocab is None:
            return value
        if value is None or value < 0:
            raise DataError(f"Row {index} has no class in the column {self.name!r}: {value}.")
        return self.vocab[value]
