"""DataLoader: the same batches whatever the workers, clean ends, errors that name the file."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import TensorDataset

from treadle.data import (
    DataLoader,
    DataLoaders,
    Resize,
    aug_transforms,
    default_device,
)
from treadle.data.workers import default_workers, in_order
from treadle.errors import DataError, UsageError


class Pictures:
    """Samples (image, index), made on the spot; says when it is read."""

    def __init__(self, n: int, size: int = 12) -> None:
        self.items = [f"picture-{i}.png" for i in range(n)]
        self.size = size
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.read.append(index)
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 256, (self.size, self.size + 4, 3), dtype=np.uint8)
        return Image.fromarray(pixels), index


def loader(n: int = 23, bs: int = 5, **kwargs: Any) -> DataLoader:
    given = {
        "shuffle": True,
        "item_tfms": Resize(10),
        "batch_tfms": aug_transforms(size=8, min_scale=0.5),
        "seed": 3,
        "device": "cpu",
        **kwargs,
    }
    return DataLoader(Pictures(n), bs, **given)


def by_sample(dl: DataLoader) -> dict[int, torch.Tensor]:
    return {int(i): image for x, y in dl for image, i in zip(x, y, strict=True)}


def no_threads() -> bool:
    return not any(t.name.startswith("treadle-data") for t in threading.enumerate())


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_order_and_augmentation_do_not_depend_on_workers(workers: int) -> None:
    alone, threaded = loader(num_workers=0), loader(num_workers=workers)
    for _ in range(2):  # two epochs, each of its own
        for (x, y), (u, v) in zip(alone, threaded, strict=True):
            assert torch.equal(x, u) and torch.equal(y, v)
    assert no_threads()


def test_augmentation_does_not_depend_on_the_batch_size() -> None:
    some, others = by_sample(loader(bs=5)), by_sample(loader(bs=8))
    assert some.keys() == others.keys() == set(range(23))
    for index in some:
        assert torch.allclose(some[index], others[index], atol=1e-6)


def test_every_epoch_has_its_own_order_and_augmentation() -> None:
    dl = loader()
    first, second = ([y.tolist() for _, y in dl] for _ in range(2))
    assert dl.epoch == 2
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(23))
    assert first != second
    a, b = loader(), loader()
    b.epoch = 1
    images, later = by_sample(a), by_sample(b)
    assert not any(torch.allclose(images[i], later[i]) for i in images)


def test_the_seed_comes_from_torch_unless_given() -> None:
    torch.manual_seed(11)
    first = loader(seed=None)
    torch.manual_seed(11)
    second = loader(seed=None)
    assert first.seed == second.seed != loader(seed=None).seed
    before = torch.get_rng_state()
    list(first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_plain_loader_neither_shuffles_nor_draws() -> None:
    dl = loader(shuffle=False)
    once, again = list(dl), list(dl)
    assert [y.tolist() for _, y in once] == [
        list(range(k, min(k + 5, 23))) for k in range(0, 23, 5)
    ]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(once, again, strict=True))


@given(st.integers(1, 40), st.integers(1, 12), st.booleans(), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_lengths(n: int, bs: int, drop_last: bool, workers: int) -> None:
    x = torch.arange(float(n))[:, None]
    dl = DataLoader(
        TensorDataset(x, x), bs, True, drop_last, num_workers=workers, seed=0, device="cpu"
    )
    sizes = [len(y) for _, y in dl]
    assert len(sizes) == len(dl) >= 1
    if drop_last and n >= bs:
        assert sizes == [bs] * (n // bs)
    else:
        assert sum(sizes) == n and sizes[:-1] == [bs] * (len(sizes) - 1)


def test_fewer_samples_than_a_batch_are_one_batch_though_the_last_is_dropped() -> None:
    dl = loader(n=3, bs=64, drop_last=True)
    assert len(dl) == 1 and [len(y) for _, y in dl] == [3]


@pytest.mark.parametrize("workers", [0, 2])
def test_leaving_early_leaves_nothing_running(workers: int) -> None:
    dl = loader(n=200, bs=2, num_workers=workers)
    for _ in dl:
        break
    assert no_threads()
    read = len(dl.dataset.read)
    assert read <= 2 * (2 * max(workers, 1) + workers + 1)  # what may be ahead
    time.sleep(0.05)
    assert len(dl.dataset.read) == read
    with pytest.raises(ZeroDivisionError):
        for _ in dl:
            raise ZeroDivisionError
    assert no_threads()
    assert dl.epoch == 2


def test_work_under_way_ends_at_the_next_sample() -> None:
    class Slow(Pictures):
        def __getitem__(self, index: int) -> Any:
            time.sleep(0.02)
            return super().__getitem__(index)

    dl = DataLoader(Slow(1000), 100, num_workers=2, device="cpu", item_tfms=Resize(8))
    start = time.perf_counter()
    iterator = iter(dl)
    next(iterator)  # 100 samples, 2 seconds; others are under way by now
    middle = time.perf_counter()
    iterator.close()  # type: ignore[attr-defined]
    assert time.perf_counter() - middle < 0.5 < middle - start
    assert no_threads()


def test_threads_work_at_once_and_stay_within_bounds() -> None:
    barrier = threading.Barrier(3, timeout=10)
    started: list[int] = []

    def work(task: int, stop: threading.Event) -> int:
        started.append(task)
        if task < 3:
            barrier.wait()  # passes only where three tasks are under way together
        return task * task

    results = in_order(work, range(50), workers=3)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(started) <= 6
    assert list(results) == [k * k for k in range(1, 50)]
    assert no_threads()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_transform_that_fails_is_named_with_the_sample(workers: int) -> None:
    def picky(image: Image.Image) -> Image.Image:
        if image.getpixel((0, 0)) == Pictures(20)[13][0].getpixel((0, 0)):
            raise ValueError("no such thing")
        return image

    dl = loader(n=20, num_workers=workers, item_tfms=[picky, Resize(10)])
    with pytest.raises(DataError, match=r"picky failed on sample 13 \(picture-13\.png\)") as caught:
        list(dl)
    assert "Image RGB 12x16" in str(caught.value)
    assert "ValueError: no such thing" in str(caught.value)
    assert no_threads()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_data_set_raises_passes_with_a_note(workers: int) -> None:
    class Broken(Pictures):
        def __getitem__(self, index: int) -> Any:
            if index == 7:
                raise KeyError("seven")
            return super().__getitem__(index)

    with pytest.raises(KeyError, match="seven") as caught:
        list(DataLoader(Broken(10), 4, num_workers=workers, device="cpu"))
    assert caught.value.__notes__ == ["While reading sample 7: picture-7.png"]


def test_a_batch_transform_that_fails_is_named() -> None:
    def wrong(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(7, 7)

    with pytest.raises(RuntimeError, match="invalid for input") as caught:
        list(loader(batch_tfms=[wrong]))
    assert "In the batch transform wrong, given Tensor (5, 3, 10, 10)" in caught.value.__notes__[0]


def test_sizes_that_differ_name_two_files() -> None:
    class Uneven(Pictures):
        def __getitem__(self, index: int) -> Any:
            return Image.new("RGB", (8 + index // 2, 9)), index

    with pytest.raises(DataError, match=r"picture-0\.png .*\(9, 8, 3\), picture-2\.png .*Resize"):
        list(DataLoader(Uneven(4), 4, device="cpu"))


def test_what_cannot_be_stacked() -> None:
    class Words(Pictures):
        def __getitem__(self, index: int) -> Any:
            return torch.zeros(2), "word"

    with pytest.raises(DataError, match="type str"):
        list(DataLoader(Words(4), 4, device="cpu"))


def test_types_of_a_batch() -> None:
    class Mixed:
        n_inp = 2

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            image = Image.fromarray(np.full((4, 5), 51 * index, np.uint8))
            return image, np.full(3, index), 1.5, index, True, torch.zeros(2)

    (grey, array, number, index, flag, tensor) = next(iter(DataLoader(Mixed(), 2, device="cpu")))
    assert grey.shape == (2, 1, 4, 5) and grey.dtype == torch.float32
    assert torch.allclose(grey[1], torch.tensor(0.2))
    assert array.shape == (2, 3) and array.dtype == torch.int64
    assert (number.dtype, index.dtype, flag.dtype) == (torch.float32, torch.int64, torch.bool)
    assert tensor.shape == (2, 2)


def test_targets_are_not_touched() -> None:
    x = torch.zeros(4, 1, 6, 6, dtype=torch.uint8)
    dl = DataLoader(TensorDataset(x, x + 7), 4, device="cpu", batch_tfms=lambda x: x + 1)
    ((a, b),) = dl
    assert torch.equal(a, torch.ones(4, 1, 6, 6)) and b.dtype == torch.uint8 and (b == 7).all()


def test_two_transforms_of_a_class_draw_apart() -> None:
    from treadle.data import Brightness

    grey = torch.full((64, 1, 1, 1), 0.5)
    once = DataLoader(
        TensorDataset(grey, grey), 64, augment=True, seed=0, batch_tfms=Brightness(0.5, 1.0)
    )
    twice = DataLoader(
        TensorDataset(grey, grey),
        64,
        augment=True,
        seed=0,
        batch_tfms=[Brightness(0.5, 1.0), Brightness(0.5, 1.0)],
    )
    a = torch.logit(once.one_batch()[0].cpu().flatten())
    both = torch.logit(twice.one_batch()[0].cpu().flatten())
    assert abs(np.corrcoef(a.numpy(), (both - a).numpy())[0, 1]) < 0.4


def test_one_batch_is_the_next_and_advances_nothing() -> None:
    dl = loader()
    list(dl)
    state = dl.state_dict()
    ahead = dl.one_batch()
    assert dl.state_dict() == state and torch.equal(dl.one_batch()[0], ahead[0])
    assert torch.equal(next(iter(dl))[0], ahead[0])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_epoch_goes_on_bit_for_bit(workers: int, stop: int) -> None:
    straight = loader(num_workers=workers)
    list(straight)
    expected = [*straight, *straight]

    first = loader(num_workers=workers)
    list(first)
    iterator = iter(first)
    got = [next(iterator) for _ in range(stop)]
    state = first.state_dict()
    del iterator
    second = loader(num_workers=0, seed=99)
    second.load_state_dict(state)
    got += [*second, *second]
    assert len(got) == len(expected)
    for (x, y), (u, v) in zip(got, expected, strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)


def test_a_state_of_other_data_is_refused() -> None:
    state = {**loader(n=22).state_dict(), "batch": 0}
    with pytest.raises(UsageError, match="n=23 samples with batches of 5"):
        loader().load_state_dict(state)
    inside = {**loader(bs=4).state_dict(), "batch": 2}
    with pytest.raises(UsageError, match=r"does not fit.*global_bs=4\."):
        loader().load_state_dict(inside)
    with pytest.raises(UsageError, match="does not fit"):
        loader().load_state_dict({})
    loader().load_state_dict({**inside, "batch": 0})


def test_bad_arguments() -> None:
    with pytest.raises(UsageError, match="bs=0"):
        loader(bs=0)
    with pytest.raises(UsageError, match="num_workers=-1"):
        loader(num_workers=-1)
    with pytest.raises(UsageError, match="given in batch_tfms; it belongs in item_tfms"):
        loader(batch_tfms=[Resize(3)])
    with pytest.raises(UsageError, match="given in item_tfms; it belongs in batch_tfms"):
        loader(item_tfms=aug_transforms())
    with pytest.raises(UsageError, match="not its class"):
        loader(item_tfms=[Resize])
    with pytest.raises(UsageError, match="expected a transform"):
        loader(item_tfms=["Resize"])
    assert 1 <= default_workers() <= 8 and loader().num_workers == default_workers()


def test_data_loaders_of_plain_iterables() -> None:
    plain = torch.utils.data.DataLoader(TensorDataset(torch.zeros(6, 2), torch.zeros(6)), 3)
    dls = DataLoaders(plain, [1, 2], path="here")
    assert dls.train.source is plain and dls.valid == [1, 2] and dls[1] == [1, 2] and len(dls) == 2
    assert (dls.path, dls.device, dls.n_inp) == (Path("here"), default_device(), None)
    assert dls.loss_func is None and not hasattr(dls, "vocab") and not hasattr(dls, "c")
    assert dls.one_batch()[0].shape == (3, 2)
    with pytest.raises(UsageError, match="There is no loader 2"):
        dls[2]
    with pytest.raises(UsageError, match="show_batch works with"):
        dls.show_batch()
    with pytest.raises(UsageError, match="test_dl works with"):
        dls.test_dl([1])
    with pytest.raises(UsageError, match="got no loader"):
        DataLoaders()
    only = DataLoaders(plain)
    with pytest.raises(UsageError, match="There is no loader 1"):
        _ = only.valid


def test_to_moves_what_follows() -> None:
    dls = DataLoaders(loader(), loader(shuffle=False))
    assert dls.device == torch.device("cpu")
    assert dls.to("meta") is dls
    assert dls.device == dls.valid.device == torch.device("meta")
    assert DataLoaders(loader(), device="meta").train.device == torch.device("meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_the_gpu_are_those_of_the_cpu() -> None:
    there, here = loader(device="cuda", num_workers=2), loader(num_workers=0)
    for (x, y), (u, v) in zip(there, here, strict=True):
        assert x.is_cuda and y.is_cuda
        assert torch.allclose(x.cpu(), u, atol=1e-4) and torch.equal(y.cpu(), v)


def test_resize_after_floats_says_where_it_belongs(tmp_path: Path) -> None:
    from torchvision.transforms import v2

    images = [Image.new("RGB", (9, 9))] * 2
    floats = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    dataset = [(image, 0) for image in images]
    dl = DataLoader(dataset, 2, item_tfms=[*floats, Resize(4)], num_workers=0, device="cpu")
    with pytest.raises(DataError, match="Put Resize first"):
        dl.one_batch()
    dl = DataLoader(dataset, 2, item_tfms=[Resize(4), *floats], num_workers=0, device="cpu")
    assert dl.one_batch()[0].shape == (2, 3, 4, 4)


def test_a_batch_of_a_worker_is_let_go_of_at_once():
    """Without the collector of garbage: its memory is to be used again for the next."""

    class Made:
        pass

    gc.collect()
    gc.disable()
    try:
        made = in_order(lambda task, stop: Made(), range(8), 2)
        first = weakref.ref(next(made))
        next(made)
        assert first() is None
        made.close()
    finally:
        gc.enable()
