"""Masks, points and boxes move with the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from treadle.data.draws import Draws
from treadle.data.geometry import Dihedral, Flip, RandomResizedCropGPU, Rotate, Warp, Zoom
from treadle.data.resize import PadMode, Resize
from treadle.data.sampling import Sampling, resample
from treadle.data.targets import in_pixels, moved, normalised, resized, windowed
from treadle.errors import UsageError

PADS = ["zeros", "border", "reflection"]
NAN = float("nan")


def homography(seed: int, batch: int = 1, tilt: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrices = np.eye(3)[None] + rng.normal(0, 0.25, (batch, 3, 3))
    matrices[:, 2] = (0, 0, 1)
    matrices[:, 2, :2] = rng.uniform(-tilt, tilt, (batch, 2))
    return matrices


def drawn(transform, seed, size):
    return transform.drawn(Draws(seed, 0, np.arange(1), "test"), size)


# --- masks ---


@given(
    seed=st.integers(0, 10**6),
    sides=st.tuples(*[st.integers(1, 9)] * 4),
    pad=st.sampled_from(PADS),
    align=st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_a_mask_is_read_where_grid_sample_reads(seed, sides, pad, align):
    before, after = sides[:2], sides[2:]
    matrices = homography(seed, 2)
    mask = torch.randint(1, 99, (2, *before), generator=torch.Generator().manual_seed(seed))
    got = moved("mask", mask, matrices, before, after, Sampling(pad_mode=pad, align_corners=align))
    edges = [0.0 if n == 1 else 1.0 if align else 1 - 1 / n for n in after]
    y, x = (np.linspace(-edge, edge, n) for edge, n in zip(edges, after, strict=True))
    places = np.stack([*np.meshgrid(x, y), np.ones(after)], -1)
    read = np.einsum("bij,hwj->bhwi", matrices, places)
    grid = torch.from_numpy(read[..., :2] / read[..., 2:])
    oracle = F.grid_sample(mask[:, None].double(), grid, "nearest", pad, align)[:, 0].long()
    # a place on the border of two pixels may fall on either side
    pixel = (grid + 1) * (torch.tensor(before[::-1]) - int(align)) / 2 - (0 if align else 0.5)
    tie = ((pixel - pixel.floor() - 0.5).abs() < 1e-4).any(-1)
    assert ((got == oracle) | tie).all()
    assert got.shape == (2, *after) and got.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 1, 5, 7)])
def test_a_mask_keeps_its_dtype_and_form(dtype, shape):
    mask = torch.randint(0, 2, shape).to(dtype)
    mirror = np.diag([-1.0, 1, 1])[None]
    got = moved("mask", mask, mirror, (5, 7), (5, 7), Sampling())
    assert got.dtype == dtype and torch.equal(got, mask.flip(-1))


def test_class_numbers_are_copied_not_computed():
    mask = torch.tensor([[[2**24 + 1, 2**53 + 1], [2**62 + 1, -7]]])
    turned = np.array([[[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]])
    got = moved("mask", mask, turned, (2, 2), (2, 2), Sampling(mode="bicubic"))
    assert sorted(got.flatten().tolist()) == sorted(mask.flatten().tolist())
    assert not torch.equal(got, mask)


def test_a_shrunken_mask_has_no_classes_that_were_not_there():
    mask = torch.tensor([0, 200], dtype=torch.uint8).repeat(1, 64, 32)
    got = moved("mask", mask, np.eye(3)[None], (64, 64), (8, 8), Sampling(align_corners=False))
    assert set(got.flatten().tolist()) <= {0, 200}


# --- points ---


def blob(points: np.ndarray, size: tuple[int, int], sigma: float) -> torch.Tensor:
    """An image (1, 1, *size) with a Gaussian about a place in pixels from the frame's edges."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    bell = np.exp(-((x - points[0]) ** 2 + (y - points[1]) ** 2) / (2 * sigma**2))
    return torch.from_numpy(bell)[None, None]


def centroid(image: torch.Tensor) -> np.ndarray:
    weights = image[0, 0].numpy()
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


MOVES = {
    "flip": Flip(p=1),
    "dihedral": Dihedral(p=1),
    "rotate": Rotate(40, p=1),
    "zoom": Zoom(0.7, 1.4, p=1),
    "warp": Warp(0.2, p=1),
    "crop": RandomResizedCropGPU(32, min_scale=0.4),
}


@given(
    move=st.sampled_from(sorted(MOVES)),
    seed=st.integers(0, 10**6),
    before=st.tuples(st.integers(36, 70), st.integers(36, 70)),
    after=st.tuples(st.integers(36, 70), st.integers(36, 70)),
    place=st.tuples(st.floats(0.3, 0.7), st.floats(0.3, 0.7)),
    align=st.booleans(),
)
@example("flip", 0, (36, 36), (70, 36), (0.3, 0.5), True)
@settings(deadline=None, max_examples=80)
def test_a_point_stays_on_what_is_painted_there(move, seed, before, after, place, align):
    how = Sampling(pad_mode="zeros", align_corners=align)
    matrices = drawn(MOVES[move], seed, before)
    at = np.array(place) * before[::-1]
    point = torch.from_numpy(normalised("points", at[None, None], before))
    went = moved("points", point, matrices, before, after, how)
    there = in_pixels("points", went, after)[0, 0].numpy()
    if (there < 8).any() or (there > np.array(after[::-1]) - 8).any():
        return  # part of the blob is outside: its centroid tells nothing
    image = resample(blob(at, before, 1.2), matrices, after, how)
    assert np.abs(centroid(image) - there).max() < 0.3


@given(
    seed=st.integers(0, 10**6),
    sides=st.tuples(*[st.integers(1, 50)] * 4),
    align=st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_points_are_the_inverse_of_where_pixels_are_read(seed, sides, align):
    before, after = sides[:2], sides[2:]
    matrices = homography(seed, 3)
    out = np.random.default_rng(seed).uniform(-1, 1, (3, 5, 2))  # normalised as the matrices are
    read = np.einsum("bij,bnj->bni", matrices, np.concatenate([out, np.ones((3, 5, 1))], -1))
    source = read[..., :2] / read[..., 2:]
    scales = [
        np.array([1.0 if n == 1 or not align else (n - 1) / n for n in size[::-1]])
        for size in (before, after)
    ]  # from the middle of the last pixel at 1 to the edge of the frame at 1
    got = moved(
        "points",
        torch.from_numpy(source * scales[0]),
        matrices,
        before,
        after,
        Sampling(align_corners=align),
    )
    assert np.allclose(got.numpy(), out * scales[1], atol=1e-8)


def test_points_outside_stay_outside_and_missing_ones_missing():
    points = torch.tensor([[[0.5, 0.5], [NAN, NAN], [0.2, NAN], [3.0, 0.0]]])
    zoomed = np.diag([0.25, 0.25, 1])[None]
    got = moved("points", points, zoomed, (9, 9), (9, 9), Sampling(align_corners=False))
    assert got[0, 0].tolist() == [2.0, 2.0]
    assert got[0, 1].isnan().all() and got[0, 2, 1].isnan()
    assert got[0, 3].tolist() == [12.0, 0.0]


def test_points_beyond_the_horizon_are_missing():
    tilted = np.array([[[1.0, 0, 0], [0, 1, 0], [0.8, 0, 1]]])
    inverse = np.linalg.inv(tilted)[0]
    points = np.array([[0.0, 0.0], [2.0, 0.0], [0.5, 0.5]])
    depth = points @ inverse[2, :2] + inverse[2, 2]
    assert depth[1] < 0 < depth[2]
    got = moved("points", torch.from_numpy(points)[None], tilted, (9, 9), (9, 9), Sampling())
    assert got[0, 1].isnan().all() and not got[0, [0, 2]].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_points_and_boxes_keep_their_dtype(dtype):
    for kind, width in (("points", 2), ("boxes", 4)):
        value = torch.linspace(-0.9, 0.9, 3 * width).reshape(1, 3, width).to(dtype)
        got = moved(kind, value, homography(3), (20, 30), (10, 10), Sampling())
        assert got.dtype == dtype and got.shape == value.shape


# --- boxes ---


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_a_box_is_about_its_corners(seed):
    rng = np.random.default_rng(seed)
    matrices, how = homography(seed, 2), Sampling(align_corners=False)
    low, high = rng.uniform(-1, 0, (2, 4, 2)), rng.uniform(0.05, 1, (2, 4, 2))
    boxes = torch.from_numpy(np.concatenate([low, high], -1))
    got = moved("boxes", boxes, matrices, (9, 9), (9, 9), how)
    for b, n in np.ndindex(2, 4):
        left, top, right, bottom = boxes[b, n].tolist()
        corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
        m = np.linalg.inv(matrices[b])
        seen = [m @ [*corner, 1] for corner in corners]
        if min(place[2] for place in seen) <= 0:
            assert got[b, n].isnan().all()
            continue
        x, y = np.array([place[:2] / place[2] for place in seen]).clip(-1, 1).T
        oracle = [x.min(), y.min(), x.max(), y.max()]
        if oracle[0] == oracle[2] or oracle[1] == oracle[3]:
            assert got[b, n].isnan().all()
        else:
            assert np.allclose(got[b, n].numpy(), oracle, atol=1e-9)


def test_boxes_that_leave_the_frame_are_nan():
    boxes = torch.tensor([[[0.6, 0.6, 0.9, 0.9], [-0.1, -0.1, 0.9, 0.1], [NAN, NAN, NAN, NAN]]])
    zoomed = np.diag([0.5, 0.5, 1])[None]
    got = moved("boxes", boxes, zoomed, (8, 8), (8, 8), Sampling(align_corners=False))
    assert got[0, 0].isnan().all() and got[0, 2].isnan().all()
    assert torch.allclose(got[0, 1], torch.tensor([-0.2, -0.2, 1.0, 0.2]))


# --- with torchvision ---


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_flips_are_torchvisions(axis):
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional

    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 8, (5, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.uniform(0.5, 8, (5, 2))], -1).astype(np.float32)
    mask = rng.integers(0, 9, (16, 20)).astype(np.uint8)
    flip = getattr(functional, f"{axis}_flip")
    oracle = flip(tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(16, 20)))
    matrices = np.diag([-1.0, 1, 1] if axis == "horizontal" else [1.0, -1, 1])[None]
    given = normalised("boxes", torch.from_numpy(boxes)[None], (16, 20))
    got = in_pixels(
        "boxes", moved("boxes", given, matrices, (16, 20), (16, 20), Sampling()), (16, 20)
    )
    assert np.allclose(got[0].numpy(), oracle.numpy(), atol=1e-4)
    moved_mask = moved(
        "mask", torch.from_numpy(mask)[None], matrices, (16, 20), (16, 20), Sampling()
    )
    assert torch.equal(moved_mask[0], flip(tv_tensors.Mask(mask)))


# --- single items ---


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
@settings(deadline=None, max_examples=60)
def test_resized_is_pillows(shape, size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    mask = rng.integers(0, 256, shape).astype(np.uint8)
    bilinear = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    nearest = Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)
    assert (resized("image", image, (99, 99), size) == np.asarray(bilinear)).all()
    same = resized("mask", mask, (99, 99), size) == np.asarray(nearest)
    # below the border of two pixels either will do
    clear = [
        (2 * np.arange(to) + 1) * side % (2 * to) != 0 for side, to in zip(shape, size, strict=True)
    ]
    assert same[np.ix_(*clear)].all()


def test_a_mask_of_large_numbers_is_resized_exactly():
    mask = np.array([[2**40 + 1, 2], [3, 2**53 + 1]])
    got = resized("mask", mask, (2, 2), (4, 4))
    assert got.dtype == mask.dtype and (got == mask.repeat(2, 0).repeat(2, 1)).all()


@given(
    shape=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    window=st.tuples(
        st.integers(-12, 12), st.integers(-12, 12), st.integers(1, 20), st.integers(1, 20)
    ),
    pad=st.sampled_from(PADS),
    colours=st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_a_window_is_a_part_of_the_padded_picture(shape, window, pad, colours):
    value = np.arange(1, 1 + np.prod(shape), dtype=np.uint8).reshape(shape)
    around = [(40, 40), (40, 40)]
    if colours:
        value, around = np.stack([value, value + 1, value + 2], -1), [*around, (0, 0)]
    mode = {"zeros": "constant", "border": "edge", "reflection": "reflect"}[pad]
    top, left, height, width = window
    padded = np.pad(value, around, mode=mode)
    oracle = padded[top + 40 : top + 40 + height, left + 40 : left + 40 + width]
    kind = "image" if colours else "mask"
    assert (windowed(kind, value, window, PadMode(pad)) == oracle).all()
    assert (windowed(kind, value, window, pad) == oracle).all()


def test_a_window_within_is_no_copy():
    value = np.zeros((9, 9, 3), np.uint8)
    assert np.shares_memory(windowed("image", value, (1, 2, 3, 4)), value)


def test_points_and_boxes_go_with_the_window():
    points = np.array([[1.0, 2.0], [NAN, NAN]], np.float32)
    boxes = np.array([[0, 0, 4, 4], [0, 0, 1, 9], [NAN] * 4], np.float32)
    window = (1, 2, 4, 5)
    assert windowed("points", points, window)[0].tolist() == [-1.0, 1.0]
    assert np.isnan(windowed("points", points, window)[1]).all()
    got = windowed("boxes", boxes, window)
    assert got[0].tolist() == [0, 0, 2, 3] and np.isnan(got[1:]).all()
    assert got.dtype == np.float32
    assert resized("boxes", boxes, (9, 9), (18, 27))[0].tolist() == [0, 0, 12, 8]


@pytest.mark.parametrize("method", ["crop", "squish", "pad"])
def test_a_painted_pixel_keeps_its_point_through_resizing(method):
    frame, size = (36, 60), (24, 20)
    image = np.zeros((*frame, 3), np.uint8)
    at = (31.5, 17.5)  # the middle of a pixel
    image[17, 31] = 255
    resize = Resize(size, method=method, pad_mode="zeros")
    fitted = resize.fitted(frame)
    top, left = resize.windows(np.array([fitted]), None)[0].tolist()
    window = (top, left, *size)
    picture = windowed("image", resized("image", image, frame, fitted), window, "zeros")
    points = np.array([at], np.float32)
    went = windowed("points", resized("points", points, frame, fitted), window)[0]
    where = centroid(torch.from_numpy(picture[None, None, ..., 0].astype(float)))
    assert np.abs(where - went).max() < 0.5


@given(size=st.tuples(st.integers(1, 500), st.integers(1, 500)))
@settings(deadline=None, max_examples=30)
def test_normalised_and_back(size):
    points = np.random.default_rng(0).uniform(0, 1, (7, 2)) * size[::-1]
    assert np.allclose(in_pixels("points", normalised("points", points, size), size), points)
    both = np.array([[0, 0, size[1], size[0]]], np.float32)
    assert np.allclose(normalised("boxes", both, size), [[-1, -1, 1, 1]])
    assert normalised("boxes", both, size).dtype == np.float32
    tensor = normalised("boxes", torch.from_numpy(both).half(), size)
    assert tensor.dtype == torch.float16


def test_an_unknown_kind_is_an_error():
    with pytest.raises(UsageError, match="kind='label'"):
        moved("label", torch.zeros(1, 2, 2), np.eye(3)[None], (4, 4), (4, 4), Sampling())
    with pytest.raises(UsageError, match="'image', 'mask'"):
        resized("label", np.zeros((2, 2)), (4, 4), (4, 4))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["mask", "points", "boxes"])
def test_on_a_gpu_as_on_the_cpu(kind):
    value = torch.rand(2, 5, 4 if kind == "boxes" else 2) * 2 - 1
    if kind == "mask":
        value = torch.randint(0, 9, (2, 20, 30))
    arguments = homography(3, 2), (20, 30), (25, 25), Sampling()
    there = moved(kind, value.cuda(), *arguments)
    assert there.is_cuda
    assert torch.allclose(there.cpu(), moved(kind, value, *arguments), atol=1e-5, equal_nan=True)
