"""A sample is the same picture, bit for bit, however it comes: by which batch, worker, cache."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from treadle.data import (
    CategoryBlock,
    DataBlock,
    DataLoader,
    ImageBlock,
    Normalize,
    Resize,
    aug_transforms,
    get_image_files,
    imagenet_stats,
    parent_label,
)
from treadle.data.blocks import MaskBlock, PointBlock
from treadle.data.cache import DeviceCache
from treadle.data.splitters import IndexSplitter
from treadle.errors import DataError

N = 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files of many sizes, smooth enough that a shift is told from noise."""
    path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(N):
        rough = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
        size = tuple(rng.integers(30, 90, 2).tolist())
        (path / f"class{index % 3}").mkdir(exist_ok=True)
        picture = rough.resize(size, Image.Resampling.BICUBIC)
        picture.save(path / f"class{index % 3}" / f"{index:02d}.jpg", quality=95)
    return path


def everything(item: Path) -> np.ndarray[Any, Any]:
    """A mask as large as its picture, which says where its bright pixels are."""
    return (np.asarray(Image.open(item).convert("L")) > 127).astype(np.uint8)


def corners(item: Path) -> list[tuple[float, float]]:
    with Image.open(item) as image:
        return [(0.0, 0.0), (float(image.width), float(image.height))]


def loader(folder: Path, tfms: Any = None, **settings: Any) -> DataLoader:
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=get_image_files,
        splitter=IndexSplitter([0]),
        get_y=parent_label,
        item_tfms=Resize(28),
        batch_tfms=tfms or [*aug_transforms(size=24, min_scale=0.5), Normalize(*imagenet_stats)],
    )
    shuffle = settings.pop("shuffle", True)
    settings = {"bs": 4, "num_workers": 0, "seed": 5, "device": "cpu", **settings}
    loaders = block.dataloaders(folder, drop_last=False, shuffle_train=shuffle, **settings)
    train: DataLoader = loaders.train
    return train


def by_sample(dl: DataLoader, epoch: int) -> dict[int, tuple[torch.Tensor, ...]]:
    dl.load_state_dict({**dl.state_dict(), "epoch": epoch, "batch": 0})
    found = {}
    for batch in dl:
        for at, index in enumerate(dl.indices.tolist()):
            found[index] = tuple(element[at] for element in batch)
    return found


def assert_same(a: dict[int, Any], b: dict[int, Any]) -> None:
    assert a.keys() == b.keys()
    for index, elements in a.items():
        assert all(torch.equal(x, y) for x, y in zip(elements, b[index], strict=True)), index


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    bs=st.integers(1, N),
    workers=st.integers(0, 3),
    cache=st.sampled_from(["auto", "memory", "disk", None]),
    epoch=st.integers(0, 3),
    filled=st.booleans(),
    shuffle=st.booleans(),
)
def test_batch_size_workers_and_cache_change_no_bit(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    bs: int,
    workers: int,
    cache: str | None,
    epoch: int,
    filled: bool,
    shuffle: bool,
) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(folder / "home"))
    expected = by_sample(loader(folder, cache=None, bs=3, shuffle=False), epoch)
    asked = loader(folder, bs=bs, num_workers=workers, cache=cache, shuffle=shuffle)
    if filled:
        asked.fill_cache()
    assert_same(by_sample(asked, epoch), expected)
    assert_same(by_sample(asked, epoch), expected)  # now from the cache
    asked.reader.close()


def test_an_epoch_goes_on_where_it_was_left(folder: Path) -> None:
    whole = [x for x, _ in loader(folder)]
    left = loader(folder)
    for at, (x, _) in enumerate(left):
        assert torch.equal(x, whole[at])
        if at == 1:
            state = left.state_dict()
            break
    resumed = loader(folder, num_workers=2, cache="memory")
    resumed.load_state_dict(state)
    rest = [x for x, _ in resumed]
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[2:], strict=True))


def test_a_sample_can_be_seen_again(folder: Path) -> None:
    dl = loader(folder, num_workers=2)
    seen = by_sample(dl, 2)
    x, y = dl.batch_of([7, 3], epoch=2)
    assert torch.equal(x, torch.stack([seen[7][0], seen[3][0]]))
    assert y.tolist() == [int(seen[7][1]), int(seen[3][1])]
    assert not torch.equal(dl.batch_of([7], epoch=1)[0][0], seen[7][0])


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treadle.data.making.compiled", lambda: None)


@pytest.mark.parametrize("pad_mode", ["reflection", "border", "zeros"])
@pytest.mark.parametrize("min_scale", [0.1, 1.0])
@pytest.mark.parametrize("size", [24, 9, (20, 31)])
def test_tensor_operations_give_the_same_pictures(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pad_mode: str, min_scale: float, size: Any
) -> None:
    tfms = [
        *aug_transforms(size=size, min_scale=min_scale, pad_mode=pad_mode),
        Normalize([0.5] * 3, [0.25] * 3),
    ]
    compiled = by_sample(loader(folder, tfms), 1)
    without_compiler(monkeypatch)
    plain = by_sample(loader(folder, tfms), 1)
    worst = max(float((compiled[i][0] - plain[i][0]).abs().max()) for i in plain) * 0.25
    assert worst < 2 / 255


def segmentation(folder: Path, **settings: Any) -> DataLoader:
    block = DataBlock(
        blocks=(ImageBlock, MaskBlock(["dark", "bright"]), PointBlock),
        n_inp=1,
        get_items=get_image_files,
        splitter=IndexSplitter([0]),
        get_y=[everything, corners],
        item_tfms=Resize(28, "squish"),
        batch_tfms=aug_transforms(size=24, max_lighting=0),
    )
    return block.dataloaders(folder, bs=4, seed=3, device="cpu", drop_last=False, **settings).train


@pytest.mark.parametrize("compiler", [True, False])
def test_masks_and_points_move_with_the_image(
    folder: Path, monkeypatch: pytest.MonkeyPatch, compiler: bool
) -> None:
    if not compiler:
        without_compiler(monkeypatch)
    for x, mask, points in segmentation(folder):
        assert mask.dtype == torch.int64 and mask.shape == (len(x), 24, 24)
        assert points.shape == (len(x), 2, 2)
        bright = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1) * 255 > 127
        agree = (bright.long() == mask).float().mean(dim=(1, 2))
        assert agree.min() > 0.93  # at the edges nearest and bilinear reading differ


def test_bad_files_are_named_or_skipped(folder: Path, tmp_path: Path) -> None:
    for file in get_image_files(folder):
        goal = tmp_path / file.relative_to(folder)
        goal.parent.mkdir(exist_ok=True)
        goal.write_bytes(file.read_bytes())
    files = sorted(tmp_path.rglob("*.jpg"))
    files[3].write_bytes(b"\xff\xd8 no picture")
    files[9].write_bytes(b"")
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"\.jpg"):
            list(loader(tmp_path, num_workers=workers))
        dl = loader(tmp_path, num_workers=workers, on_error="skip", cache="memory")
        for _ in range(2):
            assert sum(len(x) for x, _ in dl) == N - 1 - 2
        assert sorted(skipped.item for skipped in dl.skipped) == sorted(
            map(str, (files[3], files[9]))
        )
        assert all(skipped.item in skipped.reason for skipped in dl.skipped)
        assert dl.reader.complete
        whole = by_sample(loader(folder), 0)
        got = by_sample(dl, 0)
        assert_same(got, {index: whole[index] for index in got})


def test_a_batch_of_bad_files_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for index in range(6):
        Image.new("RGB", (30, 30)).save(tmp_path / "ab"[index % 2] / f"{index}.png")
    files = get_image_files(tmp_path)
    for file in files[2:4]:
        file.write_bytes(b"")
    dl = loader(tmp_path, bs=2, on_error="skip", shuffle=False)
    assert [len(x) for x, _ in dl] == [1, 1, 1] or sum(len(x) for x, _ in dl) == 3
    assert len(dl.skipped) == 2


def test_pictures_on_the_device_are_the_same(folder: Path) -> None:
    """Where they would lie on a GPU they are cut out of one tensor: asked of the CPU here."""
    dl = loader(folder, cache="memory", bs=5)
    expected = dl.one_batch()
    dl.fill_cache()
    dl.maker.settle(torch.device("cpu"))
    assert isinstance(dl.maker.resident, DeviceCache)
    task = dl.next_task()
    made = dl.maker.make(task, dl._draws(task), False, 1, Event())
    x, y = dl.maker.finished(made).elements
    assert torch.equal(y, expected[1])
    std = torch.tensor(imagenet_stats[1])[:, None, None]
    assert float(((x - expected[0]) * std).abs().max()) < 2 / 255
    with pytest.warns(UserWarning, match="cache='device' takes images alone"):
        both = segmentation(folder, cache="memory")
        both.fill_cache()
        both.maker.settle(torch.device("cpu"))
    assert both.maker.resident is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_caches_and_workers_give_the_same(folder: Path) -> None:
    on_cpu = by_sample(loader(folder), 1)
    std = torch.tensor(imagenet_stats[1])[:, None, None]
    for cache in ("memory", "device"):
        dl = loader(folder, device="cuda", cache=cache, num_workers=2)
        for _ in range(2):
            found = by_sample(dl, 1)
            worst = max(
                float(((found[i][0].cpu() - on_cpu[i][0]) * std).abs().max()) for i in on_cpu
            )
            assert worst < 2 / 255
