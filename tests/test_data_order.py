"""The order of an epoch: pure in (seed, epoch), fair, and plain about what cannot be."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import TensorDataset, WeightedRandomSampler

from treadle.data import CategoryBlock, DataBlock, DataLoader, ImageBlock
from treadle.data.order import (
    Balanced,
    InOrder,
    Order,
    Shuffled,
    Weighted,
    as_order,
    occurrences,
)
from treadle.errors import DataError, UsageError

SEEDS = st.integers(-(2**63), 2**63 - 1)
EPOCHS = st.integers(0, 10**6)
LABELS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=60)


def orders_of(n: int) -> list[Order]:
    return [InOrder(), Shuffled(), Weighted(np.arange(n) + 1.0), Balanced(np.arange(n) % 3)]


@given(SEEDS, EPOCHS, st.integers(1, 300))
def test_an_order_is_indices_and_as_long_as_it_says(seed: int, epoch: int, n: int) -> None:
    for order in orders_of(n):
        drawn = order.order(seed, epoch, n)
        assert drawn.dtype == np.int64 and drawn.shape == (order.size(n),)
        assert ((drawn >= 0) & (drawn < n)).all()
        assert np.array_equal(drawn, order.order(seed, epoch, n))  # nothing was advanced


@given(SEEDS, EPOCHS, st.integers(0, 300))
def test_every_sample_once(seed: int, epoch: int, n: int) -> None:
    assert sorted(Shuffled().order(seed, epoch, n).tolist()) == list(range(n))
    assert InOrder().order(seed, epoch, n).tolist() == list(range(n))


@pytest.mark.parametrize("place", [1, 2, 3])
def test_seed_and_epoch_matter(place: int) -> None:
    order = orders_of(60)[place]
    drawn = {order.order(seed, epoch, 60).tobytes() for seed in range(9) for epoch in range(9)}
    assert len(drawn) == 81


def test_orders_are_uncorrelated_from_epoch_to_epoch() -> None:
    rows = np.stack([Shuffled().order(5, epoch, 5_000) for epoch in range(12)])
    apart = np.corrcoef(rows)[np.triu_indices(12, 1)]
    assert np.abs(apart).max() < 4.5 / np.sqrt(5_000)
    neighbours = np.corrcoef(rows[0][:-1], rows[0][1:])[0, 1]
    assert abs(neighbours) < 4.5 / np.sqrt(5_000)


# Weights


def test_weights_are_kept_to() -> None:
    weights = np.array([5.0, 0.0, 1.0, 2.5, 0.0, 11.5])
    drawn = np.concatenate([Weighted(weights, n=4_000).order(1, epoch, 6) for epoch in range(50)])
    counts = np.bincount(drawn, minlength=6)
    kept = weights > 0
    assert counts[~kept].sum() == 0
    expected = weights[kept] / weights.sum() * counts.sum()
    assert stats.chisquare(counts[kept], expected).pvalue > 1e-4


def test_draws_are_independent_of_their_place() -> None:
    order = Weighted([1.0, 2.0, 3.0], n=30_000)
    drawn = order.order(seed=4, epoch=0, n=3)
    table = np.zeros((3, 3))
    np.add.at(table, (drawn[:-1], drawn[1:]), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-4
    halves = [np.bincount(half, minlength=3) for half in np.split(drawn, 2)]
    assert stats.chi2_contingency(np.stack(halves)).pvalue > 1e-4


@given(SEEDS, st.integers(1, 30), st.floats(1e-300, 1e300))
def test_only_the_ratio_of_weights_matters(seed: int, n: int, scale: float) -> None:
    weights = np.arange(1, n + 1) / n
    a, b = Weighted(weights), Weighted(weights * scale)
    assert np.mean(a.order(seed, 0, n) == b.order(seed, 0, n)) > 0.9  # all but rounding


def test_one_sample_may_have_all_the_weight() -> None:
    assert set(Weighted([0, 0, 1e-300, 0]).order(0, 0, 4).tolist()) == {2}
    assert set(Weighted([1e308, 1e308, 0]).order(0, 0, 3).tolist()) <= {0, 1}


def test_how_many_are_drawn() -> None:
    assert Weighted([1, 1]).size(2) == 2
    assert len(Weighted([1, 1], n=7).order(0, 0, 2)) == Weighted([1, 1], n=7).size(2) == 7
    assert len(Weighted(torch.ones(5), n=2).order(0, 0, 5)) == 2


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1, 2, -3], r"the weight -3\.0 for sample 2; expected finite numbers, 0 or more"),
        ([1, float("nan")], "the weight nan for sample 1"),
        ([1, float("inf")], "the weight inf for sample 1"),
        ([0, 0.0], "all 0: nothing could be drawn"),
        ([], r"weights of shape \(0,\)"),
        ([[1, 2]], r"weights of shape \(1, 2\)"),
        (["heavy", "light"], "expected numbers as weights"),
    ],
)
def test_weights_that_cannot_be(weights: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Weighted(weights)


def test_weights_of_other_data() -> None:
    data = TensorDataset(torch.zeros(4))
    with pytest.raises(UsageError, match="3 weights for a data set of 4 samples"):
        Weighted([1, 2, 3]).of(data)
    with pytest.raises(UsageError, match="3 weights for a data set of 5 samples"):
        Weighted([1, 2, 3]).order(0, 0, 5)
    with pytest.raises(UsageError, match="n=0"):
        Weighted([1], n=0)
    fitting = Weighted([1, 2, 3, 4])
    assert fitting.of(data) is fitting


# Classes


@given(LABELS, SEEDS, EPOCHS)
def test_every_class_as_often(labels: list[str], seed: int, epoch: int) -> None:
    order, n = Balanced(labels), len(labels)
    counts = Counter(labels[i] for i in order.order(seed, epoch, n))
    assert set(counts) == set(labels)
    assert set(counts.values()) == {n // len(set(labels))}


@given(LABELS, SEEDS, st.integers(0, 1000), st.integers(1, 12))
@settings(max_examples=50)
def test_a_class_goes_through_all_its_samples_before_one_comes_again(
    labels: list[str], seed: int, first: int, epochs: int
) -> None:
    order, n = Balanced(labels), len(labels)
    drawn = Counter[int]()
    for epoch in range(first, first + epochs):
        drawn.update(order.order(seed, epoch, n).tolist())
    for label in set(labels):
        times = [drawn[i] for i in range(n) if labels[i] == label]
        assert max(times) - min(times) <= (1 if first == 0 else 2)


def test_which_samples_of_a_large_class_come_is_even() -> None:
    labels = [0] * 8 + [1] * 4
    first = np.bincount(
        np.concatenate([Balanced(labels).order(seed, 0, 12) for seed in range(4_000)]),
        minlength=12,
    )
    assert first[8:].tolist() == [6_000] * 4 or stats.chisquare(first[8:]).pvalue > 1e-4
    assert stats.chisquare(first[:8]).pvalue > 1e-4


def test_the_classes_come_mixed() -> None:
    labels = np.repeat([0, 1], 1_000)
    drawn = labels[Balanced(labels).order(0, 0, 2_000)]
    changes = int((drawn[:-1] != drawn[1:]).sum())
    assert 850 < changes < 1_150


def test_labels_from_a_category_target() -> None:
    names = ["cat 1", "cat 2", "dog 3", "cat 4", "cat 5", "cat 6"]
    pixels = np.zeros((4, 4, 3), np.uint8)
    block = DataBlock(
        (ImageBlock, CategoryBlock),
        splitter=lambda items: (range(len(items)), []),
        get_x=lambda name: pixels,
        get_y=lambda name: name.split()[0],
    )
    data = block.datasets(names).train
    order = Balanced().of(data)
    assert Counter(names[i][:3] for i in order.order(0, 0, 6)) == {"cat": 3, "dog": 3}


def test_labels_from_the_targets_of_a_data_set() -> None:
    data = TensorDataset(torch.zeros(5))
    data.targets = torch.tensor([1, 1, 1, 1, 7])
    drawn = Balanced().of(data).order(0, 0, 5)
    assert Counter(data.targets[drawn].tolist()) == {1: 2, 7: 2}


def test_labels_that_cannot_be() -> None:
    data = TensorDataset(torch.zeros(5))
    with pytest.raises(DataError, match=r"finds no classes in a TensorDataset.*give labels="):
        Balanced().of(data)
    with pytest.raises(UsageError, match="has no labels yet"):
        Balanced().order(0, 0, 5)
    with pytest.raises(UsageError, match="2 labels for a data set of 5 samples"):
        Balanced(["a", "b"]).of(data)
    with pytest.raises(UsageError, match="2 labels for a data set of 5 samples"):
        Balanced(["a", "b"]).size(5)
    with pytest.raises(DataError, match=r"one class for each sample, and got labels like \['a'\]"):
        Balanced([["a"], ["b"]])
    assert len(Balanced([]).order(0, 0, 0)) == 0


# What a loader makes of them


def test_what_a_loader_takes() -> None:
    assert isinstance(as_order(None, shuffle=False), InOrder)
    assert isinstance(as_order(None, shuffle=True), Shuffled)
    given = Weighted([1.0])
    assert as_order(given, shuffle=True) is given
    with pytest.raises(UsageError, match=r"the class Shuffled: expected InOrder\(\)"):
        as_order(Shuffled, shuffle=False)
    with pytest.raises(UsageError, match=r"WeightedRandomSampler.*torch's own DataLoader"):
        as_order(WeightedRandomSampler([1.0], 1), shuffle=False)


@given(st.lists(st.integers(0, 8), max_size=60))
def test_occurrences_count(order: list[int]) -> None:
    seen = occurrences(np.array(order, dtype=np.int64))
    assert seen.tolist() == [order[:k].count(i) for k, i in enumerate(order)]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_the_batch_size_changes_no_order(n: int, bs: int, other: int) -> None:
    x = torch.arange(n)
    one, two = (
        DataLoader(TensorDataset(x, x), size, shuffle=True, num_workers=0, seed=2, device="cpu")
        for size in (bs, other)
    )
    assert torch.equal(torch.cat([y for _, y in one]), torch.cat([y for _, y in two]))
