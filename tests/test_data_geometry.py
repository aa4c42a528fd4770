"""Matrices and sampling against float64, scipy and torchvision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from treadle.data import (
    Dihedral,
    Draws,
    Flip,
    Geometric,
    RandomResizedCropGPU,
    ResizeBatch,
    Rotate,
    Warp,
    Zoom,
)
from treadle.data.pipeline import batch_stages
from treadle.data.sampling import Sampling, halvings_of, resample
from treadle.errors import UsageError

EYE = np.eye(3)[None]


def images(b: int = 3, c: int = 2, h: int = 12, w: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(b, c, h, w, generator=torch.Generator().manual_seed(seed))


def smooth(h: int = 64, w: int = 64) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 3, h), torch.linspace(0, 4, w), indexing="ij")
    return (0.5 + 0.25 * torch.sin(x) * torch.cos(y) + 0.1 * x / 4)[None, None]


def draws(n: int = 3, stream: str = "s", epoch: int = 0) -> Draws:
    return Draws(1, epoch, np.arange(n), stream)


class Given(Geometric):
    """Matrices that a test writes down."""

    def __init__(self, matrix: Any, **sampling: Any) -> None:
        super().__init__(**sampling)
        self.matrix = np.asarray(matrix, dtype=float).reshape(-1, 3, 3)

    def drawn(self, draws: Draws, size: tuple[int, int]) -> Any:
        return np.broadcast_to(self.matrix, (len(draws), 3, 3))


def read_by_scipy(x: np.ndarray, matrix: np.ndarray, size: tuple[int, int], mode: str) -> Any:
    """Bilinear reading of one channel (H, W) in float64, corner pixels' centres at -1 and 1."""
    h, w = x.shape
    v, u = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]), indexing="ij")
    place = np.einsum("ij,jhw->ihw", matrix, np.stack([u, v, np.ones_like(u)]))
    column, row = ((place[i] / place[2] + 1) / 2 * (side - 1) for i, side in ((0, w), (1, h)))
    return map_coordinates(x, [row, column], order=1, mode=mode)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-0.3, 0.3), min_size=8, max_size=8),
    st.tuples(st.integers(2, 20), st.integers(2, 20)),
    st.sampled_from([("reflection", "mirror"), ("border", "nearest")]),
)
def test_any_homography_equals_scipy_in_float64(
    off: list[float], size: tuple[int, int], pads: tuple[str, str]
) -> None:
    matrix = np.eye(3) + np.array([*off, 0.0]).reshape(3, 3)
    x = images(1, 1)
    out = resample(x, matrix[None], size, Sampling(pad_mode=pads[0]))[0, 0]
    if halvings_of(matrix[None], (12, 16), size, Sampling()).any():
        return  # averaged first: tested below
    expected = read_by_scipy(x[0, 0].numpy().astype(float), matrix, size, pads[1])
    assert np.abs(out.numpy() - expected).max() < 1e-4


def test_identity_does_nothing_at_all() -> None:
    x = images()
    assert resample(x, EYE, (12, 16), Sampling()) is x
    assert resample(x, np.repeat(EYE, 3, 0), (12, 16), Sampling()) is x


def test_flip_is_exact() -> None:
    x = images(64)
    flipped = Flip(p=1.0)(x, draws(64))
    assert torch.allclose(flipped, x.flip(-1), atol=1e-5)
    some = Flip(p=0.5)(x, draws(64))
    was = [torch.allclose(s, f, atol=1e-5) for s, f in zip(some, x.flip(-1), strict=True)]
    same = [torch.allclose(s, f, atol=1e-5) for s, f in zip(some, x, strict=True)]
    assert all(a != b for a, b in zip(was, same, strict=True)) and 20 < sum(was) < 44


@pytest.mark.parametrize("align_corners", [True, False])
def test_quarter_turns(align_corners: bool) -> None:
    x = images(2, 3, 10, 10)
    turn = Given([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], align_corners=align_corners)
    out = turn(x, draws(2))
    assert any(torch.allclose(out, x.rot90(k, (2, 3)), atol=1e-5) for k in (1, 3))
    assert torch.allclose(turn(turn(out, draws(2)), draws(2)), out.flip(2, 3), atol=1e-5)


def test_rotate_by_its_angle_and_in_pixels() -> None:
    m = Rotate(max_deg=30, p=1.0).drawn(draws(500), (60, 60))
    angles = np.degrees(np.arctan2(m[:, 0, 1], m[:, 0, 0]))
    assert np.abs(angles).max() <= 30 and angles.min() < -25 and angles.max() > 25
    assert np.allclose(np.linalg.det(m), 1)
    wide = Rotate(max_deg=30, p=1.0).drawn(draws(500), (60, 120))
    to_pixels = np.diag([120, 60, 2]) / 2
    in_pixels = to_pixels @ wide @ np.linalg.inv(to_pixels)
    assert np.allclose(in_pixels, m)
    assert np.array_equal(Rotate(p=0.0).drawn(draws(5), (8, 9)), np.repeat(EYE, 5, 0))


def test_rotate_equals_torchvision() -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import rotate

    x = smooth()
    m = Rotate(max_deg=30, p=1.0, align_corners=False, pad_mode="zeros").drawn(draws(1), (64, 64))
    clockwise = math.degrees(math.atan2(m[0, 0, 1], m[0, 0, 0]))
    expected = rotate(x, -clockwise, InterpolationMode.BILINEAR)
    ours = resample(x, m, (64, 64), Sampling("bilinear", "zeros", False))
    assert (ours - expected).abs().max() < 1e-4


def test_warp_equals_torchvisions_perspective() -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import perspective

    x, side = smooth(), 64
    for sample in range(5):
        m = Warp(0.3, p=1.0).drawn(Draws(2, 0, np.array([sample]), "w"), (side, side))
        # torchvision names pixels by their centres and asks where the points move: from the
        # places that are read to the corners of the picture
        corners = np.array([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], dtype=float)
        read = corners @ m[0].T
        start = (read[:, :2] / read[:, 2:] + 1) * side / 2
        end = (corners[:, :2] + 1) * side / 2
        expected = perspective(x, start.tolist(), end.tolist(), InterpolationMode.BILINEAR)
        ours = resample(x, m, (side, side), Sampling("bilinear", "zeros", False))
        assert (ours - expected).abs()[..., 3:-3, 3:-3].max() < 1e-3


def test_warp_moves_the_corners_as_it_says() -> None:
    tilt = Warp(0.2, p=1.0)
    numbers = draws(50, "w").uniform(4)
    x, y = ((2 * numbers[:, 2:] - 1) * 0.2).T
    m = tilt.drawn(draws(50, "w"), (32, 32))
    read = np.einsum("bij,cj->bci", m, [[-1, -1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, 1]])
    place = read[..., :2] / read[..., 2:]
    assert np.allclose(place[:, 0], np.stack([-1 - y, -1 - x], -1))
    assert np.allclose(place[:, 1], np.stack([-1 + y, 1 + x], -1))
    assert np.allclose(place[:, 2], np.stack([1 + y, -1 + x], -1))
    assert np.allclose(place[:, 3], np.stack([1 - y, 1 - x], -1))
    alone = Warp(0.2, p=0.5).drawn(draws(4000, "w"), (32, 32))
    identity = (np.abs(alone - np.eye(3)).max((1, 2)) < 1e-12).mean()
    assert 0.2 < identity < 0.3  # neither of two tilts, each with one half


def test_zoom_stays_inside_the_frame() -> None:
    m = Zoom(1.0, 2.0, p=1.0).drawn(draws(500), (32, 32))
    scale, x, y = m[:, 0, 0], m[:, 0, 2], m[:, 1, 2]
    assert scale.min() >= 0.5 and scale.max() <= 1 and np.array_equal(scale, m[:, 1, 1])
    assert (np.abs(x) + scale <= 1 + 1e-12).all() and (np.abs(y) + scale <= 1 + 1e-12).all()
    assert np.abs(x).max() > 0.3 and np.corrcoef(x, y)[0, 1] < 0.2
    with pytest.raises(UsageError, match="min_zoom=2"):
        Zoom(2.0, 1.5)


def test_dihedral_has_all_eight_symmetries() -> None:
    x = images(400, 1, 6, 6)
    out = Dihedral(p=1.0)(x, draws(400))
    symmetric = [t.rot90(k, (2, 3)) for t in (x, x.flip(3)) for k in range(4)]
    hits = torch.stack(
        [((out - s).abs().amax((1, 2, 3)) < 1e-5) for s in symmetric]
    )  # which symmetry each sample got
    assert (hits.sum(0) == 1).all() and (hits.sum(1) > 25).all()
    assert np.array_equal(Dihedral(p=0.0).drawn(draws(9), (6, 6)), np.repeat(EYE, 9, 0))


def test_random_resized_crop() -> None:
    crop = RandomResizedCropGPU(8, min_scale=0.3, ratio=(1, 1))
    m = crop.drawn(draws(2000), (40, 40))
    area = m[:, 0, 0] * m[:, 1, 1]
    assert area.min() >= 0.3 and area.max() <= 1 and abs(area.mean() - 0.65) < 0.02
    assert np.allclose(m[:, 0, 0], m[:, 1, 1])
    assert (np.abs(m[:, :2, 2]) + m[:, [0, 1], [0, 1]] <= 1 + 1e-12).all()
    assert np.array_equal(crop.fixed((40, 40)), EYE)
    assert crop(images(3, 1, 40, 40), draws()).shape == (3, 1, 8, 8)

    any_shape = RandomResizedCropGPU(8).drawn(draws(2000), (30, 60))
    ratio = any_shape[:, 0, 0] * 60 / (any_shape[:, 1, 1] * 30)
    area = any_shape[:, 0, 0] * any_shape[:, 1, 1]
    assert 3 / 4 - 1e-9 <= ratio.min() < 0.8 and 1.25 < ratio.max() <= 4 / 3 + 1e-9
    assert area.min() >= 0.08 and area.max() <= 1
    # twice as wide as high: square pixels stay square in validation
    assert np.allclose(crop.fixed((30, 60)), np.diag([0.5, 1, 1]))
    with pytest.raises(UsageError, match="min_scale=0"):
        RandomResizedCropGPU(8, min_scale=0)


def test_crop_where_no_attempt_fits_is_the_largest_centred_part() -> None:
    crop = RandomResizedCropGPU(8, min_scale=1.0, ratio=(1, 1))
    m = crop.drawn(draws(5), (30, 60))
    assert np.allclose(m[:, 0, 0], 0.5) and np.allclose(m[:, 1, 1], 1)


def test_a_chain_is_the_product_of_its_matrices() -> None:
    parts = [Rotate(20, p=1), Zoom(1.1, 1.4, p=1), Warp(0.2, p=1), Flip(p=1)]
    stages = batch_stages(parts)
    assert [s.name for s in stages] == ["uint8 to float in [0, 1]", "Rotate + Zoom + Warp + Flip"]
    x, seen = smooth().repeat(3, 1, 1, 1), draws()
    product = np.eye(3)[None]
    one_by_one = x
    for part in parts:
        own = seen.named(f"batch/{type(part).__name__}/0")
        product = product @ part.matrices(own, (64, 64))
        one_by_one = part(one_by_one, own)
    merged = stages[1].run(x, seen)
    assert torch.equal(merged, resample(x, product, (64, 64), Sampling()))
    # each of four samplings blurs and reflects a little: near, away from the border
    assert (merged - one_by_one)[..., 20:-20, 20:-20].abs().max() < 5e-3


def test_sizes_and_order_in_a_chain() -> None:
    x = images(3, 1, 20, 40)
    stages = batch_stages([ResizeBatch((10, 20)), Rotate(15, p=1)])
    assert stages[1].run(x, draws()).shape == (3, 1, 10, 20)
    assert stages[1].run(x, None).shape == (3, 1, 10, 20)
    differing = batch_stages([Flip(), Flip(pad_mode="zeros"), Flip(pad_mode="zeros")])
    assert [s.name for s in differing[1:]] == ["Flip", "Flip + Flip"]


def test_whole_frame_resize_equals_interpolate() -> None:
    x = images(2, 3, 20, 30)
    for align in (True, False):
        expected = F.interpolate(x, (15, 25), mode="bilinear", align_corners=align)
        assert torch.allclose(ResizeBatch((15, 25), align_corners=align)(x), expected, atol=1e-5)


@pytest.mark.parametrize("align_corners", [True, False])
def test_shrinking_averages_and_stays_in_place(align_corners: bool) -> None:
    fine = torch.zeros(1, 1, 64, 64)
    fine[..., ::2] = 1.0  # stripes of one pixel: grey from afar
    out = ResizeBatch(16, align_corners=align_corners)(fine)
    assert (out - 0.5).abs().max() < 0.01
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    small = ResizeBatch(16, align_corners=align_corners, pad_mode="border")(ramp)[0, 0, 8]
    centres = np.linspace(0, 63, 16) if align_corners else np.arange(16) * 4 + 1.5
    assert np.abs(small.numpy() - centres / 63)[1:-1].max() < 1e-4


def test_how_far_one_sample_shrinks_is_its_own_affair() -> None:
    x = images(6, 1, 64, 64)
    crop = RandomResizedCropGPU(16, min_scale=0.05)
    together = crop(x, draws(6))
    for i in range(6):
        alone = crop(x[i : i + 1], Draws(1, 0, np.array([i]), "s"))
        assert torch.allclose(alone[0], together[i], atol=1e-6)


def test_nothing_is_drawn_in_validation() -> None:
    x = images()
    for transform in (Flip(1.0), Dihedral(1.0), Rotate(p=1.0), Zoom(p=1.0), Warp(p=1.0)):
        assert transform(x, None) is x


@pytest.mark.parametrize("name", ["mode", "pad_mode"])
def test_unknown_sampling(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}='lanczos'"):
        Flip(**{name: "lanczos"})  # type: ignore[arg-type]


def test_a_warp_beyond_the_horizon() -> None:
    with pytest.raises(UsageError, match=r"magnitude=0\.5"):
        Warp(0.5)
