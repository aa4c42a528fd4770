"""The order in which the samples of an epoch come: a pure function of (seed, epoch).

Nothing is advanced, so an epoch begins anywhere without replaying what came before. An order says
all of it in an array of int64, the samples' indices; or, asked by `lookup`, some of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from treadle.data.datasets import Dataset
from treadle.data.draws import uniform
from treadle.data.permutation import Indices, permutation, permuted
from treadle.errors import DataError, UsageError

__all__ = ["Balanced", "InOrder", "Order", "Shuffled", "Weighted", "as_order", "occurrences"]


class Order(ABC):
    """Which samples an epoch has, and in what order. `DataLoader(sampler=...)` takes one."""

    repeats: ClassVar[bool] = True
    """Whether a sample may come more than once in an epoch."""

    def of(self, dataset: Any) -> Order:
        """The order that knows `dataset`; asked once, when a loader is made.

        Raises `UsageError` or `DataError` where it does not fit the data.
        """
        return self

    def size(self, n: int) -> int:
        """How many samples an epoch of `n` samples' data has."""
        return n

    @abstractmethod
    def order(self, seed: int, epoch: int, n: int) -> Indices:
        """The indices, in [0, `n`), of the samples of `epoch`: int64 of shape (size(n),)."""

    def lookup(self, seed: int, epoch: int, n: int) -> Callable[[Indices], Indices]:
        """`order(seed, epoch, n)` as a function: of places in it, int64 of any shape, the indices
        that are there. An order that needs not know all of it to tell a place says so here; loaders
        then begin anywhere in an epoch of any length at once.

        >>> InOrder().lookup(seed=0, epoch=0, n=10**9)(np.array([5, 10**8])).tolist()
        [5, 100000000]
        """
        return self.order(seed, epoch, n).take


class InOrder(Order):
    """Every sample once, as the data set has them.

    >>> InOrder().order(seed=0, epoch=7, n=4).tolist()
    [0, 1, 2, 3]
    """

    repeats = False

    def order(self, seed: int, epoch: int, n: int) -> Indices:
        return np.arange(n)

    def lookup(self, seed: int, epoch: int, n: int) -> Callable[[Indices], Indices]:
        return np.asarray  # the places themselves


class Shuffled(Order):
    """Every sample once, in another order each epoch. `DataLoader(shuffle=True)` means this.

    >>> Shuffled().order(seed=3, epoch=0, n=4).tolist()
    [0, 3, 2, 1]
    """

    repeats = False

    def order(self, seed: int, epoch: int, n: int) -> Indices:
        return permutation(seed, epoch, n)

    def lookup(self, seed: int, epoch: int, n: int) -> Callable[[Indices], Indices]:
        return permuted(seed, epoch, n)


class Weighted(Order):
    """Samples drawn with replacement, each in proportion to its weight.

    `weights` has one number a sample, 0 or more, shape (N,); their sum need not be 1. `n` is how
    many are drawn an epoch: as many as there are samples unless given.

    Raises `UsageError` for weights that are negative, not finite or all zero.

    >>> order = Weighted([1, 0, 3]).order(seed=0, epoch=0, n=3)
    >>> len(order), 1 in order
    (3, False)
    """

    def __init__(self, weights: ArrayLike, n: int | None = None) -> None:
        self.weights = _checked_weights(weights)
        if n is not None and n < 1:
            raise UsageError(f"Weighted(n={n!r}): expected a positive number of samples an epoch.")
        self.n = n
        shares = np.cumsum(self.weights / self.weights.max())  # whose sum cannot overflow
        self._upper = shares / shares[-1]

    def of(self, dataset: Any) -> Weighted:
        self._check(len(dataset))
        return self

    def size(self, n: int) -> int:
        return n if self.n is None else self.n

    def order(self, seed: int, epoch: int, n: int) -> Indices:
        self._check(n)
        size = self.size(n)
        points = np.sort(uniform(seed, epoch, np.arange(size), "weighted")[:, 0])
        # among millions of weights, points in order are found without jumping about in memory;
        # the shuffle makes them independent draws again
        drawn = np.searchsorted(self._upper, points, side="right")
        return drawn[permutation(seed, epoch, size)]

    def _check(self, n: int) -> None:
        if n != len(self.weights):
            raise UsageError(
                f"Weighted() got {len(self.weights)} weights for a data set of {n} samples; "
                "expected one for each."
            )


class Balanced(Order):
    """Every class as often as every other, whatever the data have of it.

    Of `n` samples in `c` classes an epoch has `n // c` of each class. A class goes through all its
    samples, in a new order each time, before one comes again: within the epoch if it is small, over
    several epochs if it is large.

    `labels` has the class of each sample, of any hashable type. None takes them from the data set:
    the labels of its category target, or its `targets`, as the data sets of torchvision have them.

    Raises `UsageError` for a number of labels that is not that of the samples, and `DataError` for
    a data set without labels.

    >>> labels = np.array(["a", "a", "a", "a", "a", "b"])
    >>> sorted(labels[Balanced(labels).order(seed=0, epoch=0, n=6)].tolist())
    ['a', 'a', 'a', 'b', 'b', 'b']
    """

    def __init__(self, labels: Iterable[Hashable] | None = None) -> None:
        self._classes = None if labels is None else _members(labels)

    def of(self, dataset: Any) -> Balanced:
        known = self if self._classes is not None else Balanced(_labels_of(dataset))
        known._members_in(len(dataset))
        return known

    def size(self, n: int) -> int:
        classes = self._members_in(n)
        return n // max(len(classes), 1) * len(classes)

    def order(self, seed: int, epoch: int, n: int) -> Indices:
        classes = self._members_in(n)
        each = n // max(len(classes), 1)
        parts = [_turns(members, seed, epoch * each, each, n) for members in classes]
        return np.concatenate([*parts, np.arange(0)])[permutation(seed, epoch, self.size(n))]

    def _members_in(self, n: int) -> list[Indices]:
        if self._classes is None:
            raise UsageError(
                "Balanced() has no labels yet; give it to a DataLoader, which takes them from its "
                "data set, or give labels=."
            )
        known = sum(map(len, self._classes))
        if known != n:
            raise UsageError(
                f"Balanced() has {known} labels for a data set of {n} samples; expected one for "
                "each."
            )
        return self._classes


def as_order(sampler: Any, shuffle: bool) -> Order:
    """What `sampler=` and `shuffle=` of a loader mean. Raises `UsageError` for what is no `Order`.

    >>> type(as_order(None, shuffle=True)).__name__
    'Shuffled'
    """
    if sampler is None:
        return Shuffled() if shuffle else InOrder()
    if isinstance(sampler, Order):
        return sampler
    given = f"the class {sampler.__name__}" if isinstance(sampler, type) else repr(sampler)
    raise UsageError(
        f"sampler={given}: expected InOrder(), Shuffled(), Weighted(weights), Balanced() or "
        "another Order, whose order(seed, epoch, n) gives the indices of an epoch. A sampler of "
        "torch has a place in torch's own DataLoader, which DataLoaders takes as it is."
    )


def occurrences(order: Indices) -> Indices:
    """How often the sample at each place of `order` came before: int64, of its shape.

    A sample that comes again in an epoch needs an address of its own for its augmentation, or
    it would come as the same picture.

    >>> occurrences(np.array([5, 2, 5, 5])).tolist()
    [0, 0, 1, 2]
    """
    places = np.argsort(order, kind="stable")
    _, first, counts = np.unique(order[places], return_index=True, return_counts=True)
    seen = np.empty_like(order)
    seen[places] = np.arange(len(order)) - np.repeat(first, counts)
    return seen


def _checked_weights(weights: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"Weighted() expected numbers as weights: {error}.") from error
    if array.ndim != 1 or len(array) == 0:
        raise UsageError(
            f"Weighted() got weights of shape {array.shape}; expected one number for each sample."
        )
    wrong = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if len(wrong):
        raise UsageError(
            f"Weighted() got the weight {array[wrong[0]]} for sample {wrong[0]}; expected finite "
            "numbers, 0 or more."
        )
    if not array.any():
        raise UsageError("Weighted() got weights that are all 0: nothing could be drawn.")
    return array


def _members(labels: Iterable[Hashable]) -> list[Indices]:
    """The indices of the samples of each class."""
    listed = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    codes: dict[Hashable, int] = {}
    try:
        coded = np.array([codes.setdefault(label, len(codes)) for label in listed], dtype=np.int64)
    except TypeError as error:
        raise DataError(
            f"Balanced() needs one class for each sample, and got labels like {listed[0]!r} "
            f"({error}); give labels=."
        ) from error
    by_class = np.argsort(coded, kind="stable")
    return np.split(by_class, np.cumsum(np.bincount(coded))[:-1]) if codes else []


def _labels_of(dataset: Any) -> Sequence[Any]:
    if isinstance(dataset, Dataset):
        for place in range(dataset.n_inp, len(dataset.blocks)):
            if dataset.blocks[place].vocab is not None:
                return [dataset.value(index, place) for index in range(len(dataset))]
    else:
        found: Sequence[Any] | None = getattr(dataset, "targets", None)
        if found is not None:
            return found
    raise DataError(
        f"Balanced() finds no classes in a {type(dataset).__name__}: it has neither a category "
        "target nor `targets`; give labels=, the class of each sample."
    )


def _turns(members: Indices, seed: int, start: int, count: int, n: int) -> Indices:
    """Places `start` to `start + count` of the endless row of shuffles of `members`."""
    first, last = start // len(members), (start + count - 1) // len(members)
    rounds = np.arange(first, last + 1)[:, None]
    keys = uniform(seed, 0, (rounds * n + members).ravel(), "balanced")[:, 0]
    row = members[np.argsort(keys.reshape(len(rounds), -1), axis=1, kind="stable")].ravel()
    skipped = start - first * len(members)
    return row[skipped : skipped + count]
