"""torchvision's transforms and other modules, with random numbers by address."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import v2

import treadle.callbacks
from treadle.data.addressed import addressed, middles, other_source
from treadle.data.draws import Draws
from treadle.data.foreign import Foreign, is_foreign
from treadle.data.resting import at_rest, name_in_torchvision
from treadle.data.transforms import ItemTransform
from treadle.errors import UsageError

NAN = float("nan")


def draws(*samples: int, seed: int = 1, epoch: int = 0, stream: str = "item/Any/0") -> Draws:
    return Draws(seed, epoch, np.array(samples, dtype=np.int64), stream)


def start_of(one: Draws) -> int:
    """The seed that stands for an address: an oracle can be given it by `torch.manual_seed`."""
    return int(one.uniform()[0, 0] * 2**53)


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def one(transform, image, own=None):
    (made,), _ = Foreign(transform).run_item([image], ["image"], [image.shape[:2]], own)
    return made


def equal(a, b) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return bool(torch.equal(a.nan_to_num(7), b.nan_to_num(7)))
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


# --- numbers by address ---

X = torch.full((4, 4), 0.5)


class Scripted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(4, 4)


DRAW = {
    "rand": lambda: torch.rand(3),
    "rand out": lambda: torch.rand(3, out=torch.empty(3)),
    "rand float64": lambda: torch.rand(3, dtype=torch.float64),
    "randn": lambda: torch.randn(2, 2),
    "randint": lambda: torch.randint(1000, (4,)),
    "randint low": lambda: torch.randint(5, 1000, (4,)),
    "randperm": lambda: torch.randperm(100),
    "rand_like": lambda: torch.rand_like(X),
    "randn_like": lambda: torch.randn_like(X),
    "randint_like": lambda: torch.randint_like(X, 1000),
    "bernoulli": lambda: torch.bernoulli(X.repeat(9, 1)),
    "multinomial": lambda: torch.multinomial(torch.ones(1000), 3),
    "normal": lambda: torch.normal(0.0, 1.0, (3,)),
    "normal of tensors": lambda: torch.normal(X, X),
    "poisson": lambda: torch.poisson(50 * X),
    "binomial": lambda: torch.binomial(100 * X, X),
    "uniform_": lambda: torch.empty(3).uniform_(1, 2),
    "normal_": lambda: torch.empty(3).normal_(),
    "random_": lambda: torch.empty(3).random_(),
    "bernoulli_": lambda: torch.empty(99).bernoulli_(0.5),
    "exponential_": lambda: torch.empty(3).exponential_(),
    "log_normal_": lambda: torch.empty(3).log_normal_(),
    "geometric_": lambda: torch.empty(9).geometric_(0.01),
    "cauchy_": lambda: torch.empty(3).cauchy_(),
    "Beta": lambda: torch.distributions.Beta(2.0, 3.0).sample(),
    "Gamma": lambda: torch.distributions.Gamma(2.0, 3.0).rsample(),
    "Normal": lambda: torch.distributions.Normal(2.0, 3.0).sample(),
    "dropout": lambda: F.dropout(torch.ones(99)),
    "alpha_dropout": lambda: F.alpha_dropout(torch.ones(99), 0.5, True),
    "feature dropout": lambda: F.dropout2d(torch.ones(1, 99, 1, 1)),
    "rrelu": lambda: F.rrelu(-X, training=True),
    "gumbel": lambda: F.gumbel_softmax(X),
    "fractional pooling": lambda: F.fractional_max_pool2d(torch.rand(1, 1, 9, 9), 2, 3),
    "attention": lambda: F.scaled_dot_product_attention(*[X[None]] * 3, dropout_p=0.5),
    "initialisation": lambda: nn.init.trunc_normal_(torch.empty(9)),
    "a layer": lambda: nn.Linear(3, 3).weight.detach(),
}


@pytest.mark.parametrize("name", DRAW)
def test_a_draw_depends_on_its_address_alone(name):
    draw = DRAW[name]
    before = torch.get_rng_state()
    with addressed(draws(3)):
        first = draw()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    with addressed(draws(3)):
        assert torch.equal(draw(), first)
    for other in (draws(4), draws(3, seed=2), draws(3, epoch=1), draws(3, stream="item/Any/1")):
        with addressed(other):
            assert not torch.equal(draw(), first)


@pytest.mark.parametrize("name", DRAW)
def test_a_draw_is_torchs_own_from_that_start(name):
    own = draws(5)
    with addressed(own):
        got = DRAW[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start_of(own))
        assert torch.equal(DRAW[name](), got)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_draws_by_address_too():
    scripted = torch.jit.script(Scripted())
    before = torch.get_rng_state()
    made = []
    for _ in range(4):  # it is optimised on the way
        with addressed(draws(3)):
            made.append(scripted(X))
    assert all(torch.equal(each, made[0]) for each in made)
    assert torch.equal(torch.get_rng_state(), before)


def test_successive_draws_differ_and_epochs_too():
    with addressed(draws(0)):
        a, b = torch.rand(9), torch.rand(9)
    assert not torch.equal(a, b)


def test_a_generator_of_its_own_is_left_alone():
    with addressed(draws(3)):
        got = torch.rand(3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(got, torch.rand(3, generator=torch.Generator().manual_seed(0)))


def test_the_context_ends_with_an_exception():
    with pytest.raises(ZeroDivisionError), addressed(draws(3)):
        raise ZeroDivisionError
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with addressed(draws(3)):
        torch.rand(3)
    assert torch.equal(torch.rand(3), expected)


def test_inner_addresses_do_not_disturb_outer_ones():
    with addressed(draws(1)):
        expected = torch.rand(2), torch.rand(2)
    with addressed(draws(1)):
        first = torch.rand(2)
        with addressed(draws(2)):
            torch.rand(2)
        assert torch.equal(first, expected[0]) and torch.equal(torch.rand(2), expected[1])


def test_threads_do_not_see_one_another():
    """Workers draw by address, while the main thread draws from the global generator."""
    torch.manual_seed(0)
    expected_global = [torch.rand(1).item() for _ in range(300)]
    expected = []
    for sample in range(40):
        with addressed(draws(sample)):
            expected.append((torch.rand(3), torch.randn(2), torch.randperm(9)))

    def work(sample):
        with addressed(draws(sample)):
            return torch.rand(3), torch.randn(2), torch.randperm(9)

    torch.manual_seed(0)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(work, sample % 40) for sample in range(400)]
        assert [torch.rand(1).item() for _ in range(300)] == expected_global
        for sample, job in enumerate(jobs):
            assert all(map(torch.equal, job.result(), expected[sample % 40]))


def test_other_threads_are_compiled_as_before():
    """Torch's own modes leave flags set that switch compilation off, if threads interleave."""
    from torch.utils import _python_dispatch as dispatch

    entered, leave = threading.Event(), threading.Event()

    def work():
        with addressed(draws(0)):
            entered.set()
            leave.wait(10)

    worker = threading.Thread(target=work)
    with addressed(draws(1)):
        worker.start()
        entered.wait(10)
        assert not dispatch.is_in_torch_dispatch_mode()
    leave.set()
    worker.join()
    assert not dispatch.is_in_torch_dispatch_mode()
    assert not dispatch.is_in_any_mode_without_ignore_compile_internals()


def test_what_takes_no_generator_is_refused_unless_it_draws_nothing():
    with addressed(draws(0)):
        torch.ops.aten.native_dropout(X, 0.5, False)
        torch.ops.aten.native_dropout(X, 0.0, True)
        F.scaled_dot_product_attention(*[X[None, None]] * 3)
        with pytest.raises(UsageError, match="native_dropout"):
            torch.ops.aten.native_dropout(X, 0.5, True)


def test_an_address_is_of_one_sample():
    with pytest.raises(UsageError, match="2 samples"):
        addressed(draws(1, 2))


def test_no_address_is_always_the_same():
    with addressed(None):
        first = torch.rand(3)
    with addressed(None):
        assert torch.equal(torch.rand(3), first)


def test_middles():
    with middles():
        assert int(torch.randint(0, 9, size=())) == 4
        assert torch.randint(7, (2,)).tolist() == [3, 3]
        assert torch.randint(4, 6, (1,)).tolist() == [4]


# --- other sources of numbers ---


def uses_random(x):
    return x if random.random() < 0.5 else -x


def uses_numpy(x):
    return x + np.random.rand()


def uses_import(x):
    from random import choice

    return choice([x, -x])


def calls_another(x):
    return uses_random(x)


class Noisy:
    def __init__(self, p=0.5):
        self.p = p

    def __call__(self, x):
        return self.shift(x)

    def shift(self, x):
        return x + np.random.default_rng().random()


class Quiet:
    def __init__(self):
        self.sign = random.choice([-1, 1])  # once, and the same for all images

    def __call__(self, x):
        return torch.rand(3) + self.random(x)

    def random(self, x):
        return np.zeros(3).sum() + x


def in_a_closure():
    source = random

    def inner(x):
        return source.random()

    return inner


@pytest.mark.parametrize(
    ("function", "source"),
    [
        (uses_random, "Python's random"),
        (uses_numpy, "numpy.random"),
        (uses_import, "Python's random"),
        (calls_another, "Python's random"),
        (Noisy(), "numpy.random"),
        (Noisy().shift, "numpy.random"),
        (in_a_closure(), "Python's random"),
        (lambda x: [random.random() for _ in x], "Python's random"),
        (partial(uses_random), "Python's random"),
        (Quiet(), None),
        (lambda x: torch.rand(3) + np.zeros(3), None),
        (v2.ColorJitter(0.5), None),
        (str.upper, None),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_other_sources_are_found(function, source):
    assert other_source(function) == source


def test_what_draws_elsewhere_is_refused():
    for transform in (v2.Lambda(uses_random), v2.Compose([v2.Resize(8), uses_numpy]), Noisy()):
        with pytest.raises(UsageError, match="no address"):
            Foreign(transform)


# --- which transforms ---


def test_what_is_foreign():
    for transform in (v2.Resize(8), v1.Resize(8), v1.ToTensor(), v1.Compose([]), nn.Identity()):
        assert is_foreign(transform)

    class Own(v2.Transform):
        pass

    class Ours(ItemTransform):
        def __call__(self, image, draws=None):
            return image

    assert is_foreign(Own())
    for other in (Ours(), str.upper, len, uses_random, v2.Resize, None):
        assert not is_foreign(other)


def test_torchvision_is_not_imported_before_it_is_needed():
    code = (
        "import sys, treadle.data.foreign as f; f.is_foreign(len); "
        "sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", ["CutMix", "MixUp"])
def test_mixing_is_for_callbacks(name):
    with pytest.raises(UsageError, match=rf"cbs={name}\(\)"):
        Foreign(v2.Compose([v2.Resize(8), getattr(v2, name)(num_classes=3)]))
    assert hasattr(treadle.callbacks, name)


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (v1.RandomOrder([v1.Resize(8)]), "v2.RandomOrder"),
        (v1.Compose([v1.RandomChoice([v1.Resize(8)])]), "v2.RandomChoice"),
        (v2.SanitizeBoundingBoxes(), "removes boxes"),
        (v2.SanitizeKeyPoints(), "removes points"),
        (v2.ConvertBoundingBoxFormat("XYWH"), "left, top, right, bottom"),
        (v2.RandomChoice([v2.Resize(8), v2.CenterCrop(8)]), "in validation"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refusals_name_the_mend(transform, words):
    with pytest.raises(UsageError, match=words):
        Foreign(transform)


# --- one item ---

RANDOM_V2 = [
    v2.AugMix(),
    v2.AutoAugment(),
    v2.ColorJitter(0.5, 0.5, 0.5, 0.2),
    v2.ElasticTransform(20.0),
    v2.GaussianBlur(3),
    v2.JPEG((5, 50)),
    v2.RandAugment(),
    v2.RandomAdjustSharpness(3.0),
    v2.RandomAffine(30, (0.2, 0.2), (0.7, 1.3), 10),
    v2.RandomApply([v2.Grayscale(3)]),
    v2.RandomAutocontrast(),
    v2.RandomChannelPermutation(),
    v2.RandomCrop(16, padding=4),
    v2.RandomEqualize(),
    v2.RandomErasing(),
    v2.RandomGrayscale(),
    v2.RandomHorizontalFlip(),
    v2.RandomInvert(),
    v2.RandomOrder([v2.GaussianBlur(3), v2.RandomHorizontalFlip(), v2.ColorJitter(0.5)]),
    v2.RandomPerspective(),
    v2.RandomPhotometricDistort(),
    v2.RandomPosterize(3),
    v2.RandomResize(8, 20),
    v2.RandomResizedCrop(16),
    v2.RandomRotation(40),
    v2.RandomShortestSize([8, 12, 16]),
    v2.RandomSolarize(100.0),
    v2.RandomVerticalFlip(),
    v2.RandomZoomOut(),
    v2.ScaleJitter((20, 20)),
    v2.TrivialAugmentWide(),
    v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.GaussianNoise()]),
    nn.Sequential(v2.RandomHorizontalFlip(), v2.RandomAffine(30)),
]


def name_of(transform) -> str:
    return type(transform).__name__ if callable(transform) else str(transform)


old_codec = pytest.mark.filterwarnings("ignore:.*encoding capabilities:DeprecationWarning")


@old_codec
@pytest.mark.parametrize("transform", RANDOM_V2, ids=name_of)
def test_an_image_is_what_torchvision_makes_of_it(transform):
    """With the global generator started where the address says."""
    image = picture()
    for sample in range(3):
        own = draws(sample)
        got = one(transform, image, own)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(start_of(own))
            wanted = transform(tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)))
        if wanted.dtype == torch.uint8:
            assert isinstance(got, np.ndarray) and got.dtype == np.uint8
            got = torch.from_numpy(got).permute(2, 0, 1)
        assert type(got) is torch.Tensor and torch.equal(got, wanted.as_subclass(torch.Tensor))


RANDOM_V1 = [
    v1.RandomResizedCrop(16),
    v1.RandomHorizontalFlip(),
    v1.ColorJitter(0.5),
    v1.RandAugment(),
    v1.Compose([v1.RandomCrop(16), v1.RandomRotation(30), v1.ToTensor(), v1.RandomErasing()]),
]


@pytest.mark.parametrize("transform", RANDOM_V1, ids=name_of)
def test_v1_gets_its_pil_image(transform):
    image, own = picture(), draws(3)
    got = one(transform, image, own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start_of(own))
        wanted = transform(Image.fromarray(image))
    if isinstance(wanted, Image.Image):
        assert np.array_equal(got, np.asarray(wanted))
    else:
        assert torch.equal(got, wanted)


def test_grey_images_and_tensors_pass_too():
    grey = picture()[..., 0]
    assert one(v2.CenterCrop((8, 10)), grey, draws(0)).shape == (8, 10)
    assert one(v1.CenterCrop((8, 10)), grey, draws(0)).shape == (8, 10)
    floats = torch.rand(3, 24, 32)
    got = one(v2.Normalize([0.5] * 3, [0.25] * 3), floats, draws(0))
    assert torch.allclose(got, (floats - 0.5) / 0.25)
    assert one(v2.Grayscale(), picture(), draws(0)).shape == (24, 32)


def test_pil_transforms_give_pixels_again():
    image = picture()
    made = one(v2.Compose([v2.ToPILImage(), v2.RandomHorizontalFlip(1.0)]), image, draws(0))
    assert np.array_equal(made, image[:, ::-1])


@pytest.mark.filterwarnings("ignore:The transform `ToTensor:UserWarning")
def test_to_tensor_scales_as_it_does_with_pil():
    image = picture()
    for transform in (v1.ToTensor(), v2.ToTensor()):
        made = one(transform, image, draws(0))
        assert torch.equal(made, torch.from_numpy(image).permute(2, 0, 1).float() / 255)


def test_the_given_array_is_never_written():
    image, mask = picture(), picture()[..., 0].copy()
    points = np.array([[1, 2], [NAN, 3]], np.float32)
    kept = [value.copy() for value in (image, mask, points)]
    for value in (image, mask, points):
        value.flags.writeable = False
    made, _ = Foreign(v2.Lambda(lambda x: x.fill_(9))).run_item(
        [image, mask, points], ["image", "mask", "points"], [(24, 32)] * 3, draws(0)
    )
    assert all((made[place] == 9).all() for place in (0, 1)) and made[2][0].tolist() == [9, 9]
    assert all(map(partial(np.array_equal, equal_nan=True), (image, mask, points), kept))


def blob(height, width, at, sigma=1.5):
    y, x = np.mgrid[:height, :width] + 0.5
    bell = 255 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * sigma**2))
    return np.repeat(bell[..., None], 3, -1).round().astype(np.uint8)


def centroid(pixels):
    weights = pixels[..., 0].astype(float)
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


MOVING = [
    (v2.RandomHorizontalFlip(1.0), 0.05),
    (v2.RandomVerticalFlip(1.0), 0.05),
    (v2.Resize((96, 40)), 0.1),
    (v2.Resize((30, 33)), 0.2),
    (v2.CenterCrop(40), 0.05),
    (v2.Pad([3, 1, 4, 5]), 0.05),
    (v2.RandomCrop(40, padding=4), 0.05),
    (v2.RandomResizedCrop(48, scale=(0.6, 1.0)), 0.2),
    (v2.RandomZoomOut(p=1.0), 0.05),
    (v2.RandomRotation(45, v2.InterpolationMode.BILINEAR), 0.1),
    (v2.RandomRotation(45, v2.InterpolationMode.BILINEAR, expand=True), 1.0),
    (v2.RandomAffine(30, (0.1, 0.1), (0.8, 1.2), 10, v2.InterpolationMode.BILINEAR), 0.15),
    (v2.RandomPerspective(0.2, p=1.0), 0.5),
    (v2.ElasticTransform(30.0, 6.0), 0.7),  # its points go back by the shift of their own pixel
    (v2.ScaleJitter((50, 50)), 0.2),
    (v2.RandomShortestSize([30, 40, 50]), 0.2),
]


@pytest.mark.parametrize(("transform", "within"), MOVING, ids=lambda v: name_of(v))
def test_targets_move_with_the_image(transform, within):
    """A blob, a mask and a box about it, a point on it, an unmarked point; and a label."""
    height, width = 50, 60
    kinds = ["image", "mask", "points", "boxes", None]
    foreign, checked = Foreign(transform), 0
    for sample in range(8):
        at = np.random.default_rng(sample).uniform(22, 28, 2)
        y, x = np.mgrid[:height, :width] + 0.5
        mask = 3 * (np.hypot(x - at[0], y - at[1]) < 6).astype(np.uint8)
        points = np.array([at * 2, [NAN, NAN]], np.float32)  # of a frame of twice the size
        boxes = np.array([[*(at - 6), *(at + 6)], [NAN] * 4], np.float32) * 2
        double = (2 * height, 2 * width)
        elements = [blob(height, width, at), mask, points, boxes, "a label"]
        frames = [double] * 4 + [None]
        made, now = foreign.run_item(elements, kinds, frames, draws(sample))
        image, mask, points, boxes, label = made
        assert label == "a label" and now == [image.shape[:2]] * 4 + [None]
        assert [v.dtype for v in made[:4]] == ["uint8", "uint8", "float32", "float32"]
        assert np.isnan(points[1]).all() and np.isnan(boxes[1]).all()
        if (points[0] < 10).any() or (points[0] > np.array(image.shape[1::-1]) - 10).any():
            continue
        checked += 1
        assert np.abs(centroid(image) - points[0]).max() < within
        assert set(np.unique(mask)) == {0, 3}
        rows, columns = np.nonzero(mask)
        middle = np.array([columns.mean(), rows.mean()]) + 0.5
        assert np.abs(middle - points[0]).max() < within + 0.8  # its nearest pixels are left above
        assert (boxes[0, :2] < points[0]).all() and (points[0] < boxes[0, 2:]).all()
        assert boxes[0, 0] - 1 <= columns.min() and columns.max() <= boxes[0, 2] + 1
    assert checked > 2


def test_boxes_of_which_nothing_is_left_are_nan():
    boxes = np.array([[0, 0, 3, 3], [8, 8, 20, 20]], np.float32)
    (_, made), _ = Foreign(v2.CenterCrop((10, 16))).run_item(
        [picture(), boxes], ["image", "boxes"], [(24, 32)] * 2, draws(0)
    )
    assert np.isnan(made[0]).all() and made[1].tolist() == [0, 1, 12, 10]


def test_masks_with_classes_stay_a_tensor():
    transform = v2.ToDtype({tv_tensors.Mask: torch.int64, "others": None})
    (_, mask), _ = Foreign(transform).run_item(
        [picture(), picture()[..., 0]], ["image", "mask"], [(24, 32)] * 2, draws(0)
    )
    assert type(mask) is torch.Tensor and mask.dtype == torch.int64 and mask.shape == (24, 32)


def test_points_without_their_picture_are_an_error():
    points = np.zeros((1, 2), np.float32)
    with pytest.raises(UsageError, match=r"frame, \(9, 9\)"):
        Foreign(v2.CenterCrop(8)).run_item(
            [picture(), points], ["image", "points"], [(24, 32), (9, 9)], draws(0)
        )


def test_several_images_for_one_are_an_error():
    with pytest.raises(UsageError, match="expected one image"):
        one(v2.FiveCrop(8), picture(), draws(0))


def test_lost_elements_are_an_error():
    class Lossy(v2.Transform):
        def forward(self, *inputs):
            return inputs[0][0]

    with pytest.raises(UsageError, match=r"1 elements of a sample's 2"):
        Foreign(Lossy()).run_item(
            [picture(), picture()[..., 0]], ["image", "mask"], [(24, 32)] * 2, draws(0)
        )


def test_points_outside_the_frame_stay_outside():
    points = np.array([[-5.5, 3.0], [40.0, 30.25]], np.float32)
    for transform in (v2.ElasticTransform(0.0), v2.Identity(), v2.RandomRotation((0, 0))):
        (_, made), _ = Foreign(transform).run_item(
            [picture(), points], ["image", "points"], [(24, 32)] * 2, draws(0)
        )
        assert np.allclose(made, points, atol=1e-4)


def test_v1_does_not_leave_targets_behind():
    given = [picture(), picture()[..., 0]], ["image", "mask"], [(24, 32)] * 2
    for transform in (v1.RandomHorizontalFlip(), nn.Identity(), v2.Compose([v2.Resize(8), len])):
        with pytest.raises(UsageError, match=r"has mask.*v2\.Lambda"):
            Foreign(transform).run_item(*given, draws(0))
    made, _ = Foreign(v1.ColorJitter(0.5)).run_item(*given, draws(0))
    assert not np.array_equal(made[0], given[0][0]) and made[1] is given[0][1]
    made, _ = Foreign(v2.Lambda(lambda x: 255 - x, tv_tensors.Image)).run_item(*given, draws(0))
    assert np.array_equal(made[0], 255 - given[0][0]) and np.array_equal(made[1], given[0][1])


def test_two_images_of_a_sample_get_the_same():
    pair = [picture(seed=1), picture(seed=1)]
    for transform in (v2.RandomResizedCrop(8), v1.RandomResizedCrop(8), nn.Dropout(0.5)):
        if isinstance(transform, nn.Dropout):
            pair = [torch.rand(3, 8, 8)] * 2
        made, _ = Foreign(transform).run_item(pair, ["image"] * 2, [(24, 32)] * 2, draws(5))
        assert equal(made[0], made[1])


# --- batches ---

BATCHED = [
    v2.RandomResizedCrop(12),
    v2.Compose([v2.RandomAffine(30), v2.ColorJitter(0.4), v2.GaussianNoise()]),
    v2.RandomErasing(0.7),
    nn.Dropout(0.5),
]


@pytest.mark.parametrize("transform", BATCHED, ids=name_of)
@given(order=st.permutations(range(6)), cut=st.integers(1, 6), workers=st.integers(1, 3))
@settings(deadline=None, max_examples=8)
def test_a_sample_does_not_depend_on_its_batch(transform, order, cut, workers):
    torch.manual_seed(0)
    images = torch.rand(6, 3, 16, 20)
    foreign = Foreign(transform)
    whole = foreign.run_batch([images], ["image"], draws(*range(6)))[0]
    batches = [order[start : start + cut] for start in range(0, 6, cut)]

    def work(batch):
        return foreign.run_batch([images[list(batch)]], ["image"], draws(*batch))[0]

    with ThreadPoolExecutor(workers) as pool:
        for batch, made in zip(batches, pool.map(work, batches), strict=True):
            assert torch.equal(made, whole[list(batch)])


@given(order=st.permutations(range(5)), workers=st.integers(1, 3))
@settings(deadline=None, max_examples=10)
def test_an_item_does_not_depend_on_order_and_threads(order, workers):
    images = [picture(seed=seed) for seed in range(5)]
    foreign = Foreign(v2.Compose([v2.RandomResizedCrop(12), v2.RandAugment()]))

    def work(at):
        return foreign.run_item([images[at]], ["image"], [(24, 32)], draws(at))[0][0]

    alone = [work(at) for at in range(5)]
    with ThreadPoolExecutor(workers) as pool:
        for at, made in zip(order, pool.map(work, order), strict=True):
            assert equal(made, alone[at])


def test_targets_of_a_batch_move_with_it():
    at = np.array([[20.0, 14.0], [31.0, 25.0]])
    images = np.stack([blob(40, 48, place) for place in at])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    masks = (x[:, :1] > 0.5).long() * 5
    points = torch.from_numpy(at / [24, 20] - 1)[:, None]
    boxes = torch.cat([points - 0.1, points + 0.1], -1)
    kinds = ["image", "mask", "points", "boxes", None]
    label = torch.tensor([1, 2])
    for transform in (v2.RandomHorizontalFlip(1.0), v2.Resize((60, 36)), v2.RandomRotation(30)):
        made = Foreign(transform).run_batch([x, masks, points, boxes, label], kinds, draws(1, 2))
        assert made[4] is label and made[1].shape[1] == 1 and made[1].dtype == torch.int64
        height, width = made[0].shape[-2:]
        for b in range(2):
            where = centroid(made[0][b].permute(1, 2, 0).numpy())
            point = ((made[2][b, 0] + 1) * torch.tensor([width, height]) / 2).numpy()
            assert np.abs(where - point).max() < 0.5
            assert (made[3][b, 0, :2] < made[2][b, 0]).all()
            assert made[1][b, 0, int(point[1]), int(point[0])] == 5
        assert made[2].dtype == made[3].dtype == torch.float64


def test_normalize_runs_at_once_and_is_undone_for_showing():
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    x = torch.rand(5, 3, 8, 8)
    calls = []

    class Normalize(v2.Normalize):
        def forward(self, *inputs):
            calls.append(1)
            return super().forward(*inputs)

    Normalize.__module__ = "torchvision.transforms.v2"
    for kind in (v2.Normalize, v1.Normalize, Normalize):
        foreign = Foreign(kind(mean, std))
        (made,) = foreign.run_batch([x], ["image"], draws(*range(5)))
        assert torch.equal(made, v2.functional.normalize(x, mean, std))
        assert torch.allclose(foreign.decode(made), x, atol=1e-6) and type(made) is torch.Tensor
    assert calls == [1]
    nested = Foreign(v2.Compose([v2.ToDtype(torch.float32), v2.Normalize(mean, std)]))
    assert torch.allclose(nested.decode(made), x, atol=1e-6)
    assert Foreign(v2.RandomHorizontalFlip()).decode(made) is made


def test_samples_of_different_shapes_make_no_batch():
    with pytest.raises(UsageError, match="different shapes"):
        Foreign(v2.RandomResize(8, 30)).run_batch(
            [torch.rand(9, 3, 8, 8)], ["image"], draws(*range(9))
        )


# --- validation ---


def test_every_random_transform_of_torchvision_has_its_rule():
    """A transform that torchvision adds has to be thought about."""
    names = [n for n in dir(v2) if isinstance(getattr(v2, n), type) and n[0].isupper()]
    known = {name_in_torchvision(t) for t in RANDOM_V2} | {"GaussianNoise"}
    refused = {"CutMix", "MixUp", "ConvertBoundingBoxFormat"}
    refused |= {"SanitizeBoundingBoxes", "SanitizeKeyPoints"}
    settled = set(
        "AutoAugmentPolicy CenterCrop ClampBoundingBoxes ClampKeyPoints Compose ConvertImageDtype "
        "FiveCrop Grayscale Identity InterpolationMode Lambda LinearTransformation Normalize "
        "PILToTensor Pad RGB Resize SetClampingMode TenCrop ToDtype ToImage ToPILImage "
        "ToPureTensor ToTensor Transform UniformTemporalSubsample".split()
    )
    chosen = {"RandomChoice", "RandomIoUCrop"}
    assert set(names) - known - refused - settled - chosen == set()
    v1_names = [n for n in dir(v1) if isinstance(getattr(v1, n), type) and n[0].isupper()]
    assert set(v1_names) - set(names) == set()


@pytest.mark.parametrize("transform", [*RANDOM_V2, *RANDOM_V1], ids=name_of)
def test_validation_is_not_random(transform):
    image = picture(40, 50)
    made = []
    for seed in range(4):
        torch.manual_seed(seed)
        made.append(one(transform, image, None))
    assert all(equal(each, made[0]) for each in made)


SIZED = "RandomCrop RandomResize RandomResizedCrop RandomShortestSize ScaleJitter".split()
LEFT_OUT = [t for t in RANDOM_V2 if name_of(t) not in [*SIZED, "Compose"]]


@pytest.mark.parametrize("transform", LEFT_OUT, ids=name_of)
def test_what_acts_only_at_random_is_left_out(transform):
    assert at_rest(transform) is None
    image = picture()
    assert one(transform, image, None) is image


@old_codec
@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomHorizontalFlip(1.0),
        v2.RandomGrayscale(1.0),
        v2.GaussianBlur(3, 1.5),
        v2.RandomRotation((90, 90)),
        v2.JPEG(50),
        v1.RandomVerticalFlip(1.0),
        v1.GaussianBlur(3, 1.5),
        v2.RandomApply([v2.GaussianBlur(3, 1.5)], p=1.0),
        v2.RandomOrder([v2.RandomInvert(1.0), v2.ColorJitter(0.5)]),
    ],
    ids=name_of,
)
def test_what_is_not_random_after_all_stays(transform):
    image = picture()
    assert at_rest(transform) is not None
    assert not np.array_equal(one(transform, image, None), image)


@pytest.mark.parametrize("module", [v1, v2])
def test_crops_are_centred(module):
    image = picture(40, 50)
    centre = one(v2.CenterCrop(32), image)
    assert np.array_equal(one(module.RandomCrop(32), image), centre)
    assert np.array_equal(one(module.RandomCrop(32, padding=4), image), centre)
    assert np.array_equal(one(module.RandomCrop((40, 50), padding=4), image), image)
    grown = one(module.RandomCrop((60, 50), pad_if_needed=True, fill=7), image)
    assert np.array_equal(grown[10:50], image) and (grown[:10] == 7).all() and len(grown) == 60
    whole = one(module.Resize((24, 24)), image)
    assert np.array_equal(one(module.RandomResizedCrop(24), image), whole)
    wide = picture(40, 100)
    part = one(module.RandomResizedCrop(24, ratio=(0.5, 1.5)), wide)
    across = round(40 * 1.5)
    side = (100 - across) // 2
    assert np.array_equal(part, one(module.Resize((24, 24)), wide[:, side : side + across]))


def test_drawn_sizes_take_the_middle():
    image = picture(40, 60)
    assert one(v2.RandomShortestSize([10, 20, 30]), image).shape == (20, 30, 3)
    assert one(v2.RandomResize(10, 21), image).shape == (15, 22, 3)
    assert one(v2.ScaleJitter((80, 80)), image).shape == (53, 80, 3)


def test_containers_are_walked():
    image = picture(40, 50)
    inner = v2.RandomApply([v2.ColorJitter(0.5)], p=0.5)
    for container in (v2.Compose, v1.Compose, lambda steps: nn.Sequential(*steps)):
        steps = [v2.RandomHorizontalFlip(), container([v2.RandomCrop(32), inner]), v2.Resize(16)]
        made = one(container(steps), image)
        assert np.array_equal(made, one(v2.Resize(16), one(v2.CenterCrop(32), image)))
    assert (
        at_rest(v2.Compose([inner, v2.RandomChoice([v2.RandomInvert(), v2.RandAugment()])])) is None
    )


def test_targets_go_along_in_validation():
    points = np.array([[25.0, 20.0]], np.float32)
    (_, made), frames = Foreign(v2.Compose([v2.RandomCrop(32), v2.RandAugment()])).run_item(
        [picture(40, 50), points], ["image", "points"], [(40, 50)] * 2, None
    )
    assert made.tolist() == [[16.0, 16.0]] and frames == [(32, 32)] * 2


def test_what_is_unknown_is_run_and_draws_the_same_for_all():
    class Shifted(v2.Transform):
        def make_params(self, flat_inputs):
            return {"by": int(torch.randint(100, ()))}

        def transform(self, inpt, params):
            return inpt + params["by"]

    image = np.zeros((4, 4, 3), np.uint8)
    made = {int(one(Shifted(), image, None)[0, 0, 0]) for _ in range(5)}
    assert len(made) == 1
    assert len({int(one(Shifted(), image, draws(s))[0, 0, 0]) for s in range(20)}) > 5


def test_the_repr_is_the_transforms_own_in_one_line():
    assert repr(Foreign(v2.Compose([v2.Identity()]))) == "Compose(Identity())"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_on_a_gpu_draws_there():
    torch.manual_seed(0)
    images, foreign = torch.rand(6, 3, 16, 20, device="cuda"), Foreign(nn.Dropout(0.5))
    before = torch.cuda.get_rng_state()
    (whole,) = foreign.run_batch([images], ["image"], draws(*range(6)))
    (part,) = foreign.run_batch([images[2:4]], ["image"], draws(2, 3))
    assert torch.equal(whole[2:4], part) and whole.device == images.device
    assert torch.equal(torch.cuda.get_rng_state(), before)
    with addressed(draws(1)):
        named, placed = torch.rand(3, device="cuda"), torch.rand_like(images[0, 0, 0, :3])
    assert not torch.equal(named, placed)
