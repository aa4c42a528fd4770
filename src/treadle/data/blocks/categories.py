"""Elements that are classes: one of several, or some of several."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence, Sized
from copy import copy
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data.blocks.base import Block, Labelled, is_missing
from treadle.errors import DataError, UsageError, nearest
from treadle.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from treadle.registry import register

__all__ = ["NA", "Categorical", "CategoryBlock", "MultiCategoryBlock"]

NA = "#na#"
"""The class, first in the vocab, of labels that are missing or unknown, with `add_na=True`."""


class Categorical(Block):
    """What the two kinds of category have in common: the vocab and the look-up in it."""

    def __init__(self, vocab: Sequence[Hashable] | None, sort: bool, add_na: bool) -> None:
        self.sort, self.add_na = sort, add_na
        self.vocab = None
        self._index: dict[Any, int] = {}
        if vocab is not None:
            self._take(vocab)

    def _take(self, vocab: Iterable[Any]) -> None:
        self.vocab = list(vocab)
        if self.add_na and NA not in self.vocab:
            self.vocab.insert(0, NA)
        self._index = {label: index for index, label in enumerate(self.vocab)}
        if len(self._index) != len(self.vocab):
            raise UsageError(f"{type(self).__name__}(vocab={self.vocab!r}) names a class twice.")

    def _knowing(self, labels: Iterable[Any]) -> Self:
        """The block with the vocab that these training labels make, unless it was given one."""
        if self.vocab is not None:
            return self
        block = copy(self)
        block._take(_classes([label for label in labels if not is_missing(label)], self.sort))
        return block

    def as_arguments(self) -> dict[str, Any]:
        """The arguments that make the block as it is now, with what it learned from the data."""
        return {"vocab": self.vocab, "sort": self.sort, "add_na": self.add_na}

    def index(self, label: Any) -> int:
        """The place of `label` in the vocab. Raises `DataError` for one that it lacks."""
        try:
            return self._index[label]
        except KeyError:
            pass
        except TypeError:
            raise DataError(_no_label(label)) from None
        if self.add_na:
            return self._index[NA]
        raise DataError(f"The {self._unknown(label)}")

    def _unknown(self, label: Any) -> str:
        if is_missing(label):
            return (
                f"label is missing ({label!r}). Leave out what has none, or give "
                f"{type(self).__name__}(add_na=True) for a class {NA} of its own."
            )
        near = nearest(str(label), map(str, self._index))
        return f"label {label!r} is not among the {len(self._index)} classes; {near}"

    def _check(self, part: str, labelled: Labelled) -> None:
        """Raise for the first of the labels that has no place in the vocab, with its item."""
        for label, item in labelled:
            try:
                self.index(label)
            except DataError:
                source = (
                    " Classes come from the training items unless "
                    f"{type(self).__name__}(vocab=...) gives them."
                )
                raise DataError(
                    f"The {part} item {item}: its {self._unknown(label)}"
                    f"{'' if is_missing(label) else source}"
                ) from None


@register
class CategoryBlock(Categorical):
    """One of several classes: a label, encoded as its index in `vocab` (int).

    `vocab` is the labels of the training items unless it is given: sorted, or with `sort=False` in
    the order in which they come. With `add_na` the class "#na#" comes first; labels that are
    missing (None, NaN, "") or unknown are of it. Without it they are an error.

    >>> block = CategoryBlock().setup([("b", 0), ("a", 1), ("b", 2)], [])
    >>> block.vocab, block.encode("b"), block.decode(0)
    (['a', 'b'], 1, 'a')
    """

    def __init__(
        self,
        vocab: Sequence[Hashable] | None = None,
        sort: bool = True,
        add_na: bool = False,
    ) -> None:
        super().__init__(vocab, sort, add_na)

    @property
    def loss_func(self) -> Callable[..., Any]:
        """`CrossEntropyLossFlat()`."""
        return CrossEntropyLossFlat()

    def setup(self, train: Labelled, valid: Labelled) -> CategoryBlock:
        """The block with its vocab, every label of both parts checked against it.

        Raises `DataError` for fewer than two classes, and for a label that is missing or that the
        vocab lacks: it names the label and an item.
        """
        labels, examples = zip(*train, strict=True)
        block = self._knowing(labels)
        block._check("training", zip(labels, examples, strict=True))
        if len(block._index) < 2:
            raise DataError(
                f"There is one class, {labels[0]!r} (for example {examples[0]}); expected at least "
                "two. Check get_y and the folder that was given."
            )
        block._check("validation", valid)
        return block

    def encode(self, value: Any) -> int:
        return self.index(value)

    def decode(self, element: Any) -> Any:
        assert self.vocab is not None, "decoded before setup"
        return self.vocab[int(element)]


@register
class MultiCategoryBlock(Categorical):
    """Any number of several classes: a list of labels, encoded as float32 of shape (classes,), 1
    for each of its labels and 0 for the others.

    `vocab` is the sorted labels of the training items unless it is given. With `encoded` the
    getter returns such zeros and ones itself, in the order of `vocab`, which is then needed. With
    `add_na` the class "#na#" comes first, for labels that are unknown. An empty list of labels is
    well: all zeros.

    >>> block = MultiCategoryBlock().setup([(["sun", "sea"], 0), ([], 1), (["sea"], 2)], [])
    >>> block.vocab, block.encode(["sun"]).tolist()
    (['sea', 'sun'], [0.0, 1.0])
    >>> block.decode(torch.tensor([1.0, 1.0]))
    ['sea', 'sun']
    """

    def __init__(
        self,
        encoded: bool = False,
        vocab: Sequence[Hashable] | None = None,
        add_na: bool = False,
        *,
        sort: bool = True,
    ) -> None:
        self.encoded = encoded
        if encoded and vocab is None:
            raise UsageError(
                "MultiCategoryBlock(encoded=True) needs vocab=[...], the name of each column of "
                "zeros and ones."
            )
        if encoded and add_na:
            raise UsageError(
                "MultiCategoryBlock(encoded=True, add_na=True): what is encoded has no unknown "
                "labels; leave out add_na."
            )
        super().__init__(vocab, sort, add_na)

    def as_arguments(self) -> dict[str, Any]:
        return {**super().as_arguments(), "encoded": self.encoded}

    @property
    def loss_func(self) -> Callable[..., Any]:
        """`BCEWithLogitsLossFlat()`."""
        return BCEWithLogitsLossFlat()

    def setup(self, train: Labelled, valid: Labelled) -> MultiCategoryBlock:
        """The block with its vocab, the labels of both parts checked against it.

        Raises `DataError` for no class at all, for labels that are no list, and for a label that
        the vocab lacks: it names the label and an item.
        """
        train = list(train)
        if self.encoded:
            self._check_encoded("training", train)
            self._check_encoded("validation", valid)
            return self
        singles = list(_singles("training", train))
        if not singles and self.vocab is None:
            raise DataError(
                f"None of {len(train)} training items has a label (for example {train[0][1]}); "
                "expected lists of labels from get_y."
            )
        block = self._knowing(label for label, _ in singles)
        block._check("training", singles)
        block._check("validation", _singles("validation", valid))
        return block

    def _check_encoded(self, part: str, labelled: Labelled) -> None:
        for value, item in labelled:
            try:
                self.encode(value)
            except DataError as error:
                raise DataError(f"The {part} item {item}: {error}") from None

    def encode(self, value: Any) -> NDArray[np.float32]:
        if self.encoded:
            return self._zeros_and_ones(value)
        hot = np.zeros(len(self._index), np.float32)
        for label in _listed(value):
            hot[self.index(label)] = 1
        return hot

    def _zeros_and_ones(self, value: Any) -> NDArray[np.float32]:
        try:
            hot = np.asarray(value, np.float32)
        except (TypeError, ValueError):
            raise DataError(f"{value!r} is no list of zeros and ones. {_ENCODED}") from None
        if hot.shape != (len(self._index),) or not np.isin(hot, (0, 1)).all():
            raise DataError(
                f"{value!r} is not {len(self._index)} zeros and ones, one a class. {_ENCODED}"
            )
        return hot

    def decode(self, element: Any) -> list[Any]:
        """The labels of an element whose values are 0 and 1, or above and up to a half."""
        assert self.vocab is not None, "decoded before setup"
        chosen = (torch.as_tensor(element) > 0.5).tolist()
        return [label for label, is_there in zip(self.vocab, chosen, strict=True) if is_there]


_ENCODED = "MultiCategoryBlock(encoded=False) takes lists of labels."


def _no_label(label: Any) -> str:
    return (
        f"The label {label!r} is a {type(label).__name__}; expected one label an item, a str or "
        "an int. For several labels an item use MultiCategoryBlock."
    )


def _classes(labels: Sequence[Any], sort: bool) -> list[Any]:
    try:
        unique = list(dict.fromkeys(labels))
    except TypeError:
        odd = next(label for label in labels if not isinstance(label, Hashable))
        raise DataError(_no_label(odd)) from None
    if not sort:
        return unique
    try:
        return sorted(unique)
    except TypeError as error:
        kinds = sorted({type(label).__name__ for label in unique})
        examples = ", ".join(repr(_example(unique, kind)) for kind in kinds)
        raise DataError(
            f"Labels of type {', '.join(kinds)} cannot be sorted to a vocab ({error}; for example "
            f"{examples}). Let get_y return one type, str or int, or give "
            "CategoryBlock(vocab=[...])."
        ) from error


def _example(labels: Iterable[Any], kind: str) -> Any:
    return next(label for label in labels if type(label).__name__ == kind)


def _listed(value: Any) -> Iterable[Any]:
    if isinstance(value, str) or not (isinstance(value, Iterable) and isinstance(value, Sized)):
        raise DataError(
            f"The labels {value!r} are a {type(value).__name__}; expected a list of labels. "
            "ColReader(label_delim=' ') makes one of a table's text."
        )
    return value


def _singles(part: str, labelled: Labelled) -> Iterable[tuple[Any, Any]]:
    """Pairs (one label, its item)."""
    for value, item in labelled:
        try:
            labels = list(_listed(value))
        except DataError as error:
            raise DataError(f"The {part} item {item}: {error}") from None
        for label in labels:
            yield label, item
