"""Addressed random numbers: pure, and random enough."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from treadle.data.draws import Draws, uniform
from treadle.data.permutation import permutation

SEEDS = st.integers(-(2**63), 2**63 - 1)


@given(SEEDS, st.integers(0, 10**6), st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_a_sample_draws_the_same_in_any_company(seed: int, epoch: int, samples: list[int]) -> None:
    together = uniform(seed, epoch, samples, "stream", 3)
    assert together.dtype == np.float64 and together.shape == (len(samples), 3)
    assert ((together >= 0) & (together < 1)).all()
    for row, sample in zip(together, samples, strict=True):
        assert np.array_equal(uniform(seed, epoch, [sample], "stream", 3)[0], row)
        assert np.array_equal(uniform(seed, epoch, [sample], "stream", 2)[0], row[:2])


def by_integers(seed: int, epoch: int, sample: int, stream: str, number: int) -> float:
    """SplitMix64 as its authors wrote it, in Python's integers."""
    golden, below = 0x9E3779B97F4A7C15, 2**64

    def mix(z: int) -> int:
        z %= below
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % below
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % below
        return z ^ (z >> 31)

    digest = blake2b(f"{seed} {epoch} {stream}".encode(), digest_size=8).digest()
    start = mix(int.from_bytes(digest, "little") + sample * golden)
    return (mix(start + (number + 1) * golden) >> 11) / 2**53


def test_values_are_the_same_on_every_machine() -> None:
    expected = [
        [0.5511163896734244, 0.4799721567717733],
        [0.048013011006062256, 0.9772029506532705],
    ]
    assert uniform(0, 0, [0, 1], "a", 2).tolist() == expected
    assert [[by_integers(0, 0, s, "a", j) for j in (0, 1)] for s in (0, 1)] == expected
    assert uniform(-5, 3, [10**9], "b", 9)[0, 8] == by_integers(-5, 3, 10**9, "b", 8)


def grid(samples: int, n: int, seed: int = 0, epoch: int = 0, stream: str = "s") -> np.ndarray:
    return uniform(seed, epoch, np.arange(samples), stream, n)


def test_uniform_over_samples_numbers_epochs_seeds_and_streams() -> None:
    families = {
        "samples": grid(50_000, 1).ravel(),
        "numbers": grid(1, 50_000).ravel(),
        "epochs": np.concatenate([grid(1, 1, epoch=e).ravel() for e in range(5000)]),
        "seeds": np.concatenate([grid(1, 1, seed=s).ravel() for s in range(5000)]),
        "streams": np.concatenate([grid(1, 1, stream=str(s)).ravel() for s in range(5000)]),
    }
    for name, values in families.items():
        assert stats.kstest(values, "uniform").pvalue > 1e-4, name
        counts = np.histogram(values, bins=64, range=(0, 1))[0]
        assert stats.chisquare(counts).pvalue > 1e-4, name
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / np.sqrt(len(values)), name


def test_neighbours_are_independent() -> None:
    base = grid(20_000, 2)
    others = {
        "next number": base[:, 1],
        "next epoch": grid(20_000, 1, epoch=1)[:, 0],
        "next seed": grid(20_000, 1, seed=1)[:, 0],
        "other stream": grid(20_000, 1, stream="t")[:, 0],
    }
    for name, values in others.items():
        pairs = np.histogram2d(base[:, 0], values, bins=12, range=[(0, 1), (0, 1)])[0]
        assert stats.chisquare(pairs.ravel()).pvalue > 1e-4, name


def test_low_bits_are_as_good() -> None:
    bits = (grid(20_000, 1).ravel() * 2**53).astype(np.int64) & 0xFF
    assert stats.chisquare(np.bincount(bits, minlength=256)).pvalue > 1e-4


@given(SEEDS, st.integers(0, 100), st.integers(0, 200))
def test_permutation_is_one(seed: int, epoch: int, n: int) -> None:
    order = permutation(seed, epoch, n)
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, permutation(seed, epoch, n))


def test_permutations_differ_and_are_even() -> None:
    orders = np.stack([permutation(1, epoch, 6) for epoch in range(12_000)])
    table = np.stack([np.bincount(orders[:, place], minlength=6) for place in range(6)])
    assert stats.chisquare(table.ravel()).pvalue > 1e-4
    assert len({tuple(order) for order in orders.tolist()}) == 720


def test_draws_scale_and_name() -> None:
    draws = Draws(3, 1, np.array([4, 9]))
    assert len(draws) == 2
    assert np.array_equal(draws.named("a").uniform(2), uniform(3, 1, [4, 9], "a", 2))
    assert np.array_equal(draws.named("a").uniform(1, -2, 2), uniform(3, 1, [4, 9], "a") * 4 - 2)
    assert not np.array_equal(draws.named("a").uniform(), draws.named("b").uniform())


@pytest.mark.parametrize("seed", [2**64, -1, 2**100])
def test_any_seed_will_do(seed: int) -> None:
    assert np.isfinite(uniform(seed, 0, [0], "s")).all()
