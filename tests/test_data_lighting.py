"""Lighting and normalisation against float64 formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treadle.data import Brightness, Contrast, Draws, Normalize, imagenet_stats
from treadle.data.lighting import relight
from treadle.data.pipeline import batch_stages
from treadle.errors import UsageError


def draws(n: int) -> Draws:
    return Draws(4, 2, np.arange(n), "light")


def by_hand(x: np.ndarray, slope: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """sigmoid(a logit(x) + b) = 1 / (1 + e^-b ((1 - x) / x)^a), in float64."""
    x = np.clip(x, 1e-7, 1 - 1e-7)
    shape = (-1, 1, 1, 1)
    return 1 / (1 + np.exp(-offset.reshape(shape)) * ((1 - x) / x) ** slope.reshape(shape))


@given(st.floats(0.3, 3), st.floats(-2, 2))
def test_relight_equals_the_formula(slope: float, offset: float) -> None:
    x = torch.linspace(0, 1, 300).reshape(1, 3, 10, 10)
    a, b = np.array([slope]), np.array([offset])
    out = relight(x, a, b)
    assert out.dtype == torch.float32 and bool(((out >= 0) & (out <= 1)).all())
    inner = (x > 1e-6) & (x < 1 - 1e-6)
    expected = torch.from_numpy(by_hand(x.double().numpy(), a, b))
    assert (out - expected)[inner].abs().max() < 1e-5


def test_nothing_drawn_leaves_the_image() -> None:
    x = torch.rand(8, 3, 5, 5)
    for transform in (Brightness(0.4, p=0.0), Contrast(0.4, p=0.0)):
        assert torch.allclose(transform(x, draws(8)), x, atol=1e-6)
        assert transform(x, None) is x


def test_brightness_moves_grey_as_far_as_it_says() -> None:
    grey = torch.full((3000, 1, 1, 1), 0.5)
    out = Brightness(0.2, p=1.0)(grey, draws(3000)).flatten().numpy()
    assert 0.4 <= out.min() < 0.401 and 0.599 < out.max() <= 0.6 and abs(out.mean() - 0.5) < 0.01
    some = Brightness(0.2, p=0.75)(grey, draws(3000)).flatten().numpy()
    assert 0.22 < (some == 0.5).mean() < 0.28


def test_contrast_is_even_in_the_logarithm() -> None:
    slope, offset = Contrast(0.2, p=1.0).drawn(draws(3000))
    assert 0.8 <= slope.min() < 0.801 and 1.249 < slope.max() <= 1.25
    assert abs(np.log(slope).mean()) < 0.01 and not offset.any()


def test_neighbours_are_one_pass_in_their_order() -> None:
    x = torch.rand(5, 3, 6, 6)
    parts = [Brightness(0.5, p=1.0), Contrast(0.5, p=1.0), Brightness(0.3, p=1.0)]
    stages = batch_stages(parts)
    assert [stage.name for stage in stages[1:]] == ["Brightness + Contrast + Brightness"]
    one_by_one = x
    for part, place in zip(parts, (0, 0, 1), strict=True):
        own = draws(5).named(f"batch/{type(part).__name__}/{place}")
        one_by_one = part(one_by_one, own)
    assert torch.allclose(stages[1].run(x, draws(5)), one_by_one, atol=1e-4)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.01, 10)), min_size=1, max_size=5))
def test_normalize_round_trip(stats: list[tuple[float, float]]) -> None:
    mean, std = [m for m, _ in stats], [s for _, s in stats]
    norm = Normalize.from_stats(mean, std)
    x = torch.rand(2, len(stats), 3, 4)
    y = norm(x)
    for channel, (m, s) in enumerate(stats):
        expected = (x[:, channel].double() - m) / s
        assert torch.allclose(y[:, channel].double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(norm.decode(y), x, atol=1e-4)


def test_normalize_refuses_what_does_not_fit() -> None:
    norm = Normalize.from_stats(*imagenet_stats)
    with pytest.raises(UsageError, match=r"3 channels.*\(2, 1, 4, 4\) with 1"):
        norm(torch.rand(2, 1, 4, 4))
    for mean, std in (([0.5], [0.5, 0.5]), ([0.5], [0.0]), ([], [])):
        with pytest.raises(UsageError, match="one positive"):
            Normalize(mean, std)
    for bad in (-0.1, 1.0):
        with pytest.raises(UsageError, match="max_lighting"):
            Contrast(bad)


def test_normalize_comes_last() -> None:
    with pytest.raises(UsageError, match=r"Brightness.* comes after Normalize.*Put Normalize last"):
        batch_stages([Normalize([0.5], [0.5]), Brightness()])
