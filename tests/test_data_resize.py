"""Resize against Pillow and against what the words mean."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from treadle.data import Draws, PadMode, Resize, ResizeMethod
from treadle.errors import UsageError


def picture(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def draws(sample: int = 0) -> Draws:
    return Draws(0, 0, np.array([sample]), "resize")


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(ResizeMethod),
    st.sampled_from(PadMode),
    st.booleans(),
)
def test_the_size_is_met(
    h: int, w: int, height: int, width: int, method: ResizeMethod, pad: PadMode, train: bool
) -> None:
    resize = Resize((height, width), method, pad)
    image = resize(picture(h, w), draws() if train else None)
    assert (image.height, image.width) == (height, width)


def test_squish_is_pillows_resize() -> None:
    image = picture(30, 50)
    expected = image.resize((20, 40), Image.Resampling.BILINEAR)
    assert np.array_equal(Resize((40, 20), "squish")(image), expected)


def inside(image: Image.Image) -> np.ndarray:
    """Without the edge: there the crop is blended with its neighbours, not with itself."""
    return np.asarray(image).astype(int)[1:-1, 1:-1]


def test_crop_is_centred_in_validation() -> None:
    image = picture(30, 50)
    expected = image.crop((10, 0, 40, 30)).resize((15, 15), Image.Resampling.BILINEAR)
    assert np.abs(inside(Resize(15, ResizeMethod.Crop)(image)) - inside(expected)).max() <= 1
    tall = picture(50, 30)
    expected = tall.crop((0, 10, 30, 40)).resize((15, 15), Image.Resampling.BILINEAR)
    assert np.abs(inside(Resize(15)(tall)) - inside(expected)).max() <= 1


def test_crop_is_anywhere_along_the_longer_side_in_training() -> None:
    image = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (50, 1)))  # tells its column
    lefts = [int(np.asarray(Resize(50)(image, draws(i)))[0, 0]) for i in range(300)]
    assert min(lefts) < 5 and max(lefts) > 144
    for i in range(20):
        out = np.asarray(Resize(50)(image, draws(i)))
        assert np.array_equal(out, np.tile(np.arange(lefts[i], lefts[i] + 50), (50, 1)))


def test_pad_keeps_the_whole_image() -> None:
    image = picture(20, 40)
    zeros = np.asarray(Resize(40, "pad", "zeros")(image))
    assert np.array_equal(zeros[10:30], np.asarray(image))
    assert (zeros[:10] == 0).all() and (zeros[30:] == 0).all()
    border = np.asarray(Resize(40, "pad", "border")(image))
    assert (border[:10] == np.asarray(image)[0]).all()
    mirrored = np.asarray(Resize(40, "pad")(image))
    assert np.array_equal(mirrored[:10], np.asarray(image)[1:11][::-1])
    grey = Resize(40, "pad")(image.convert("L"))
    assert (grey.mode, grey.size) == ("L", (40, 40))


def test_pad_is_anywhere_in_training() -> None:
    image = Image.fromarray(np.full((10, 40), 255, np.uint8))
    tops = {
        int(np.asarray(Resize(40, "pad", "zeros")(image, draws(i)))[:, 0].argmax())
        for i in range(300)
    }
    assert tops == set(range(31))


def test_an_image_of_the_size_is_left_alone() -> None:
    image = picture(24, 24)
    assert Resize(24)(image, draws()) is image


@pytest.mark.parametrize("size", [0, -3, (3,), (3, 4, 5), (3, 0), 2.5, "160"])
def test_sizes_that_are_none(size: object) -> None:
    with pytest.raises(UsageError, match="size="):
        Resize(size)  # type: ignore[arg-type]


def test_unknown_methods_list_the_known() -> None:
    with pytest.raises(UsageError, match="method='stretch' is not one of 'crop', 'squish', 'pad'"):
        Resize(3, "stretch")
    with pytest.raises(UsageError, match="pad_mode='mirror'"):
        Resize(3, pad_mode="mirror")
