"""DataBlock on folders of real files, from source to batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from treadle.data import (
    CategoryBlock,
    DataBlock,
    GrandparentSplitter,
    ImageBlock,
    Normalize,
    RandomSplitter,
    Resize,
    URLs,
    aug_transforms,
    digits_path,
    get_image_files,
    imagenet_stats,
    parent_label,
    untar_data,
)
from treadle.errors import DataError, UsageError

COLOURS = {"blue": (30, 40, 220), "green": (20, 200, 40), "red": (230, 30, 30)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """12 training and 6 validation JPEG files of three colours, of several sizes."""
    for part, count in (("train", 4), ("valid", 2)):
        for label, colour in COLOURS.items():
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(count):
                size = (20 + 3 * i, 30 - 2 * i)
                Image.new("RGB", size, colour).save(tmp_path / part / label / f"{i}.jpg")
    return tmp_path


def block(**kwargs: Any) -> DataBlock:
    given = {
        "blocks": (ImageBlock, CategoryBlock),
        "get_items": get_image_files,
        "splitter": GrandparentSplitter(),
        "get_y": parent_label,
        "item_tfms": Resize(16),
        **kwargs,
    }
    return DataBlock(**given)


def test_datasets(folder: Path) -> None:
    parts = block().datasets(folder)
    assert (len(parts.train), len(parts.valid), parts.n_inp) == (12, 6, 1)
    assert parts.vocab == ["blue", "green", "red"]
    image, label = parts.valid[5]
    assert image.mode == "RGB" and parts.vocab[label] == "red"
    assert np.abs(np.asarray(image).astype(int) - COLOURS["red"]).max() < 6


def test_dataloaders(folder: Path) -> None:
    dls = block(batch_tfms=aug_transforms(max_lighting=0)).dataloaders(
        folder, bs=5, seed=1, device="cpu"
    )
    assert (len(dls.train), len(dls.valid), dls.train.n, dls.train.bs) == (2, 2, 12, 5)
    assert dls.vocab == ["blue", "green", "red"] and dls.c == 3 and dls.n_inp == 1
    assert dls.path == Path() and str(dls.device) == "cpu"
    assert type(dls.loss_func).__name__ == "CrossEntropyLossFlat"
    assert dls.train.seed == dls.valid.seed == 1
    assert dls.train.dataset.items == dls.train_ds.items == get_image_files(folder / "train")
    assert len(dls.valid_ds) == 6
    for loader in dls:
        for x, y in loader:
            assert (
                x.shape[1:] == (3, 16, 16) and x.dtype == torch.float32 and y.dtype == torch.int64
            )
            for image, label in zip(x, y.tolist(), strict=True):
                colour = torch.tensor(COLOURS[dls.vocab[label]]) / 255
                assert (image.mean((1, 2)) - colour).abs().max() < 0.03
    in_order = block().dataloaders(folder, bs=5, shuffle_train=False, drop_last=False)
    assert [y.tolist() for _, y in in_order.train] == [[0, 0, 0, 0, 1], [1, 1, 1, 2, 2], [2, 2]]
    assert in_order.train.augment and not in_order.valid.augment


def test_the_block_is_a_plan_and_can_be_used_again(folder: Path, tmp_path: Path) -> None:
    category = CategoryBlock()
    plan = block(blocks=(ImageBlock(mode="L"), category))
    first = plan.datasets(folder)
    for part in ("train", "valid"):
        (folder / part / "red").rename(folder / part / "scarlet")
    assert plan.datasets(folder).vocab == ["blue", "green", "scarlet"]
    assert first.vocab == ["blue", "green", "red"] and category.vocab is None
    assert plan.datasets(folder).train[0][0].mode == "L"


def test_a_given_vocab_keeps_its_order(folder: Path) -> None:
    vocab = ["red", "green", "blue", "yellow"]
    dls = block(blocks=(ImageBlock, CategoryBlock(vocab))).dataloaders(folder, bs=4)
    assert dls.vocab == vocab and dls.c == 4
    assert set(dls.valid.one_batch()[1].tolist()) == {2, 1}
    with pytest.raises(DataError, match=r"training item .*red.*\.jpg: its label 'red'"):
        block(blocks=(ImageBlock, CategoryBlock(["blue", "green"]))).datasets(folder)
    with pytest.raises(UsageError, match="names a class twice"):
        CategoryBlock(["a", "a"])


def test_a_label_that_only_validation_has(folder: Path) -> None:
    (folder / "valid" / "blue").rename(folder / "valid" / "bleu")
    with pytest.raises(
        DataError, match=r"validation item .*valid/bleu/0\.jpg: its label 'bleu'.*mean blue"
    ):
        block().datasets(folder)


def test_one_class(folder: Path) -> None:
    with pytest.raises(DataError, match=r"one class, 'all'.* expected at least two"):
        block(get_y=lambda item: "all").datasets(folder)


def test_labels_that_cannot_be_sorted(folder: Path) -> None:
    labels = iter(["a", 1] * 20)
    with pytest.raises(DataError, match="type int, str cannot be sorted"):
        block(get_y=lambda item: next(labels)).datasets(folder)


def test_no_items(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"There are no items in {tmp_path}"):
        block().datasets(tmp_path)


def test_splitters_are_checked(folder: Path) -> None:
    with pytest.raises(DataError, match="index 18; there are 18 items"):
        block(splitter=lambda items: ([0, 18], [1])).datasets(folder)
    with pytest.raises(DataError, match="none of 18 items"):
        block(splitter=lambda items: ([], [1])).datasets(folder)
    parts = block(splitter=RandomSplitter(0.5, seed=0)).datasets(folder)
    assert len(parts.train) == len(parts.valid) == 9


def test_getters_keep_their_exceptions(folder: Path) -> None:
    def get_y(item: Path) -> str:
        if item.parent.name == "green":
            raise KeyError("no green")
        return item.parent.name

    with pytest.raises(KeyError, match="no green") as caught:
        block(get_y=get_y).datasets(folder)
    assert caught.value.__notes__ == [
        f"in get_y for the training item 4: {folder / 'train/green/0.jpg'}"
    ]


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"get_y": None}, "0 functions in get_y for 1 target"),
        ({"get_x": [str, str]}, "2 functions in get_x for 1 input"),
        ({"n_inp": 3}, "n_inp=3"),
        ({"n_inp": 0}, "n_inp=0"),
    ],
)
def test_plans_that_cannot_be_meant(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        block(**kwargs)


def test_several_inputs_and_items_that_are_no_files() -> None:
    rng = np.random.default_rng(0)
    items = [(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), i % 2) for i in range(10)]
    plan = DataBlock(
        blocks=(ImageBlock, ImageBlock("L"), CategoryBlock),
        get_x=[lambda item: item[0], lambda item: Image.fromarray(item[0])],
        get_y=lambda item: item[1],
        batch_tfms=lambda x: x * 2,
    )
    dls = plan.dataloaders(items, bs=4)
    x, grey, y = dls.one_batch()
    assert x.shape == (4, 3, 9, 9) and grey.shape == (4, 1, 9, 9) and y.shape == (4,)
    assert x.max() > 1.5 and dls.vocab == [0, 1] and dls.n_inp == 2


def test_a_bad_file_is_named_by_the_loader(folder: Path) -> None:
    bad = folder / "train" / "green" / "2.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    dls = block().dataloaders(folder, bs=4, num_workers=2)
    with pytest.raises(DataError, match=f"The image {bad} .*does not decode") as caught:
        list(dls.train)
    assert caught.value.__notes__ == [f"While reading sample 6: {bad}"]


def test_test_loaders(folder: Path) -> None:
    dls = block(batch_tfms=aug_transforms()).dataloaders(folder, bs=4)
    items = get_image_files(folder / "valid")[::-1]
    ((x,), (last,)) = dls.test_dl(items)
    assert x.shape == (4, 3, 16, 16) and last.shape == (2, 3, 16, 16)
    labelled = dls.test_dl(items, with_labels=True, bs=6)
    ((_, y),) = labelled
    assert [dls.vocab[i] for i in y] == [item.parent.name for item in items]
    stranger = folder / "valid" / "violet" / "0.jpg"
    items[0].parent.rename(stranger.parent)
    with pytest.raises(DataError, match="'violet' is not among the 3 classes"):
        list(dls.test_dl([stranger], with_labels=True))
    assert len(next(iter(dls.test_dl([Image.new("RGB", (40, 30))])))) == 1


def test_show_batch(folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plan = block(batch_tfms=[*aug_transforms(max_lighting=0), Normalize(*imagenet_stats)])
    dls = plan.dataloaders(folder, bs=8)
    figure = dls.show_batch(max_n=5)
    shown = [(axes.get_title(), axes.images) for axes in figure.axes if axes.images]
    assert len(shown) == 5
    for title, (picture,) in shown:
        pixels = np.asarray(picture.get_array())[..., :3]
        pixels = pixels * 255 if pixels.max() <= 1 else pixels
        assert np.abs(pixels.mean((0, 1)) - COLOURS[title]).max() < 6
    plt.close(figure)


def test_summary_walks_every_stage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    plan = block(batch_tfms=[*aug_transforms(size=12, min_scale=0.5), Normalize(*imagenet_stats)])
    plan.summary(folder, bs=3)
    assert torch.equal(torch.get_rng_state(), state)
    out = capsys.readouterr().out
    for line in (
        f"Items: get_image_files of {folder}",
        "12 training items, 6 validation items",
        "vocab of 3: blue, green, red",
        "get_y (parent_label): str blue",
        "CategoryBlock: int 0",
        "ImageBlock: Image RGB 30x20 (height x width) uint8 in ",
        "Tensor (3, 3, 16, 16) uint8 in ",
        "y, CategoryBlock: Tensor (3,) int64 in 0..0 on cpu",
        "uint8 to float in [0, 1]: Tensor (3, 3, 16, 16) float32 in ",
        "RandomResizedCropGPU + Flip + Warp + Rotate + Zoom: Tensor (3, 3, 12, 12) float32",
        "Brightness + Contrast: Tensor (3, 3, 12, 12)",
        "Normalize(mean=[0.485, 0.456, 0.406]",
    ):
        assert line in out


def test_summary_names_the_stage_that_fails(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(image: Image.Image) -> Image.Image:
        raise ValueError("not today")

    with pytest.raises(DataError, match=r"wrong failed on sample 0 \(.*blue/0\.jpg\)"):
        block(item_tfms=[Resize(8), wrong]).summary(folder)
    assert "Resize(size=(8, 8)" in capsys.readouterr().out
    with pytest.raises(ValueError, match="not today") as caught:
        block(item_tfms=Resize(8), batch_tfms=wrong).summary(folder)
    assert "In the batch transform wrong, given Tensor (4, 3, 8, 8)" in caught.value.__notes__[0]
    with pytest.raises(DataError, match=r"0\.jpg has the shape \(30, 20, 3\).*Resize"):
        block(item_tfms=None).summary(folder)
    (folder / "train" / "blue" / "0.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"blue/0\.jpg .*does not decode") as caught:
        block().summary(folder)
    assert "in ImageBlock for the training item 0" in caught.value.__notes__[0]


def test_digits_from_end_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    plan = block(blocks=(ImageBlock("L"), CategoryBlock), item_tfms=None)
    dls = plan.dataloaders(digits_path(), bs=64)
    x, y = dls.one_batch()
    assert x.shape == (64, 1, 8, 8) and dls.vocab == [str(digit) for digit in range(10)]
    assert 0.2 < x.mean() < 0.4 and y.unique().numel() == 10


MINI = Path(__file__).parents[2] / "shared" / "data" / "imagenette2-160-mini.tgz"


@pytest.mark.skipif(not MINI.is_file(), reason=f"needs real Imagenette images; there is no {MINI}")
def test_the_chapters_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "imagenette2-160.tgz").symlink_to(MINI)
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TREADLE_DATA_MIRROR", str(mirror))

    def get_data(url: str, presize: int, resize: int) -> Any:
        path = untar_data(url)
        return DataBlock(
            blocks=(ImageBlock, CategoryBlock),
            get_items=get_image_files,
            splitter=GrandparentSplitter(valid_name="val"),
            get_y=parent_label,
            item_tfms=Resize(presize),
            batch_tfms=[
                *aug_transforms(min_scale=0.5, size=resize),
                Normalize.from_stats(*imagenet_stats),
            ],
        ).dataloaders(path, bs=64)

    dls = get_data(URLs.IMAGENETTE_160, 160, 128)
    assert (len(dls.train), len(dls.valid), dls.c) == (15, 7, 10)
    for loader, count in ((dls.train, 960), (dls.valid, 400)):
        sizes = []
        for x, y in loader:
            assert x.shape[1:] == (3, 128, 128) and y.max() < 10
            assert x.isfinite().all() and x.mean().abs() < 1 and 0.5 < x.std() < 2
            sizes.append(len(y))
        assert sum(sizes) == count
