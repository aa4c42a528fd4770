"""The compiled pass against the same sampling, lighting and normalisation in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.data import Draws, Normalize, aug_transforms
from treadle.data.buffers import Buffers
from treadle.data.fused import Pass, compiled
from treadle.data.lighting import relight
from treadle.data.pipeline import batch_stages
from treadle.data.sampling import Sampling, resample
from treadle.data.stages import FirstPass

pytestmark = pytest.mark.skipif(compiled() is None, reason="there is no C compiler")


def in_float64(done: Pass, pictures: list[np.ndarray[Any, Any]]) -> torch.Tensor:
    x = torch.from_numpy(np.stack(pictures)).double() / 255
    x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)
    x = resample(x, done.matrices, done.size, done.how)
    x = relight(x, *done.light) if done.light else x
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (done.mean, done.std))
    return (x - mean) / std


def worst(done: Pass, pictures: list[np.ndarray[Any, Any]]) -> float:
    """In steps of the 255 of a uint8."""
    kernel = compiled()
    assert kernel is not None
    out = done(pictures, kernel, 2, Buffers(0))
    assert out.dtype == torch.float32
    std = torch.tensor(done.std)[:, None, None]
    return float(((out - in_float64(done, pictures)) * std).abs().max()) * 255


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    frame=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    n=st.integers(1, 4),
    grey=st.booleans(),
    lit=st.booleans(),
    bent=st.booleans(),
    spread=st.sampled_from([0.1, 0.5, 3.0]),
    pad_mode=st.sampled_from(["reflection", "border", "zeros"]),
    corners=st.booleans(),
)
def test_any_pass_is_within_two_steps(
    seed: int,
    frame: tuple[int, int],
    size: tuple[int, int],
    n: int,
    grey: bool,
    lit: bool,
    bent: bool,
    spread: float,
    pad_mode: str,
    corners: bool,
) -> None:
    rng = np.random.default_rng(seed)
    # windows into larger pictures, as a crop gives them
    whole = (frame[0] + 3, frame[1] + 5, *([] if grey else [3]))
    pictures = [
        rng.integers(0, 256, whole, dtype=np.uint8)[2 : 2 + frame[0], 4 : 4 + frame[1]]
        for _ in range(n)
    ]
    matrices = np.eye(3) + rng.normal(0, spread, (n, 3, 3))
    matrices[:, 2] = (0, 0, 1)
    if bent:
        matrices[:, 2, :2] = rng.uniform(-0.3, 0.3, (n, 2))
    light = (np.exp(rng.normal(0, 0.3, n)), rng.normal(0, 0.5, n)) if lit else None
    channels = 1 if grey else 3
    mean, std = rng.uniform(0.2, 0.6, channels).tolist(), rng.uniform(0.1, 1, channels).tolist()
    how = Sampling(pad_mode=pad_mode, align_corners=corners)
    done = Pass(matrices, size, how, light, mean, std)
    # far outside a reflected place moves by more than a pixel for a rounding of its coordinate
    tolerance = 2.0 if spread < 1 else 6.0
    assert worst(done, pictures) < tolerance


@pytest.mark.parametrize("min_scale", [0.08, 0.5, 1.0])
def test_the_usual_augmentations_are_what_they_claim(min_scale: float) -> None:
    tfms = [*aug_transforms(size=128, min_scale=min_scale), Normalize([0.5] * 3, [0.25] * 3)]
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (160, 160, 3), dtype=np.uint8) for _ in range(32)]
    first = FirstPass(batch_stages(tfms))
    for epoch in range(3):
        done = first.prepared((160, 160), Draws(0, epoch, np.arange(32)))
        assert worst(done, pictures) < 2


def test_black_white_and_nan() -> None:
    """The ends of the scale have infinite log-odds, and a homography may have a horizon."""
    kernel = compiled()
    assert kernel is not None
    ends = [np.full((4, 4), value, np.uint8) for value in (0, 255)]
    light = (np.array([1.2, 1.2]), np.array([0.4, -0.4]))
    out = Pass(np.eye(3)[None], (4, 4), Sampling(), light, [0.0], [1.0])(
        ends, kernel, 1, Buffers(0)
    )
    assert torch.equal(out[1] > 0.999, torch.ones_like(out[1], dtype=torch.bool))
    assert torch.equal(out[0] < 1e-6, torch.ones_like(out[0], dtype=torch.bool))
    horizon = np.eye(3)[None].copy()
    horizon[0, 2, :2] = (1.0, 0.5)
    for pad_mode in ("reflection", "border", "zeros"):
        how = Sampling(pad_mode=pad_mode)
        beyond = Pass(horizon, (9, 9), how, None, [0.0], [1.0])(ends[:1], kernel, 1, Buffers(0))
        assert bool(beyond.isfinite().all())


def test_a_picture_depends_on_no_other() -> None:
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (50, 40, 3), dtype=np.uint8) for _ in range(9)]
    first = FirstPass(batch_stages(aug_transforms(size=33, min_scale=0.2)))
    kernel = compiled()
    assert kernel is not None
    whole = first.prepared((50, 40), Draws(0, 0, np.arange(9)))(pictures, kernel, 2, Buffers(0))
    for at in range(9):
        alone = first.prepared((50, 40), Draws(0, 0, np.array([at])))
        assert torch.equal(alone(pictures[at : at + 1], kernel, 1, Buffers(0))[0], whole[at])
