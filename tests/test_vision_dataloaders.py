"""ImageDataLoaders: from folders, tables and lists, and what is odd about those."""

from __future__ import annotations

import inspect
import os
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from treadle.data import (
    CategoryBlock,
    DataBlock,
    ImageBlock,
    MultiCategoryBlock,
    Normalize,
    RegressionBlock,
    Resize,
    Table,
    aug_transforms,
    get_image_files,
    imagenet_stats,
    parent_label,
)
from treadle.errors import DataError, UsageError
from treadle.vision import ImageDataLoaders
from treadle.vision.folder import folder_dataloaders

COLOURS = {"blue": (30, 40, 220), "green": (20, 200, 40), "red": (230, 30, 30)}
CPU: dict[str, Any] = {"device": "cpu", "num_workers": 0, "bs": 4}


def picture(path: Path, label: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), COLOURS[label]).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`train` and `valid`, three classes, 4 + 2 pictures of each, of one colour."""
    for part, count in (("train", 4), ("valid", 2)):
        for label in COLOURS:
            for i in range(count):
                picture(tmp_path / part / label / f"{label}_{i}.png", label)
    return tmp_path


def check(
    dls: ImageDataLoaders, train: int, valid: int, vocab: Any = ("blue", "green", "red")
) -> None:
    """Sizes, classes, and that every label is that of its picture's colour."""
    assert type(dls) is ImageDataLoaders
    assert (dls.train.n, dls.valid.n, list(dls.vocab)) == (train, valid, list(vocab))
    for loader in dls:
        for x, y in loader:
            for image, label in zip(x, y.tolist(), strict=True):
                colour = torch.tensor(COLOURS[dls.vocab[label]]) / 255
                assert torch.allclose(image.mean((1, 2)), colour, atol=1e-3)


def test_from_folder(folder: Path) -> None:
    dls = ImageDataLoaders.from_folder(folder, seed=1, **CPU)
    check(dls, 12, 6)
    assert dls.path == folder and dls.train.seed == 1
    (folder / "valid").rename(folder / "val")
    check(ImageDataLoaders.from_folder(folder, valid="val", **CPU), 12, 6)
    check(ImageDataLoaders.from_folder(folder / "train", valid_pct=0.25, seed=0, **CPU), 9, 3)
    vocab = ["red", "green", "blue", "other"]
    check(ImageDataLoaders.from_folder(folder, valid="val", vocab=vocab, **CPU), 12, 6, vocab)
    grey = ImageDataLoaders.from_folder(folder, valid="val", mode="L", val_bs=3, **CPU)
    assert grey.one_batch()[0].shape == (4, 1, 8, 8) and grey.valid.bs == 3


def test_from_functions_of_names_and_paths(folder: Path) -> None:
    files = get_image_files(folder)
    split = {"valid_pct": 0.5, "seed": 3, **CPU}
    made = [
        ImageDataLoaders.from_path_func(folder, files, lambda p: p.parent.name, **split),
        ImageDataLoaders.from_name_func(folder, files, lambda name: name.split("_")[0], **split),
        ImageDataLoaders.from_path_re(folder, files, r"/(\w+)/[^/]+$", **split),
        ImageDataLoaders.from_name_re(folder, files, r"^(\w+)_\d+\.png$", **split),
        ImageDataLoaders.from_lists(folder, files, [f.parent.name for f in files], **split),
    ]
    for dls in made:
        check(dls, 9, 9)
        x, y = dls.valid.one_batch()
        expected = made[0].valid.one_batch()
        assert torch.equal(x, expected[0]) and torch.equal(y, expected[1])
    strings = [str(file) for file in files]
    check(ImageDataLoaders.from_name_re(folder, strings, r"^(\w+)_", **split), 9, 9)


def test_from_csv_and_from_df(folder: Path) -> None:
    lines = ["name,colour,warm,is_valid,tags"]
    for file in get_image_files(folder):
        label, part = file.parent.name, file.parent.parent.name
        tags = f"{label} {part}" if label != "green" else ""
        lines.append(
            f"{part}/{label}/{file.stem},{label},{label == 'red'},{part == 'valid'},{tags}"
        )
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    dls = ImageDataLoaders.from_csv(
        folder, suff=".png", label_col="colour", valid_col="is_valid", **CPU
    )
    check(dls, 12, 6)
    assert dls.valid_ds.items[0].name == "valid/blue/blue_0"
    by_place = ImageDataLoaders.from_csv(folder, suff=".png", valid_pct=1 / 3, seed=0, **CPU)
    check(by_place, 12, 6)
    tagged = ImageDataLoaders.from_csv(
        folder, suff=".png", label_col="tags", label_delim=" ", valid_pct=0.1, seed=0, **CPU
    )
    assert tagged.vocab == ["blue", "red", "train", "valid"]
    assert type(tagged.loss_func).__name__ == "BCEWithLogitsLossFlat" and tagged.c == 4
    assert {row.tags or "" for row in tagged.train_ds.items} >= {"", "red train"}
    assert tagged.one_batch()[1].shape == (4, 4) and tagged.one_batch()[1].dtype == torch.float32
    (folder / "plain.csv").write_text("blue_0.png;0.5\nblue_1.png;2\n")
    plain = ImageDataLoaders.from_csv(
        folder,
        "plain.csv",
        header=None,
        delimiter=";",
        folder="train/blue",
        valid_pct=0.5,
        y_block=RegressionBlock,
        **CPU,
    )
    assert plain.c == 1 and plain.one_batch()[1].item() in (0.5, 2)


def test_from_pandas(folder: Path) -> None:
    pd = pytest.importorskip("pandas")
    files = get_image_files(folder)
    frame = pd.DataFrame(
        {
            "fn": [str(file.relative_to(folder)) for file in files],
            "label": [file.parent.name for file in files],
            "red": [int(file.parent.name == "red") for file in files],
            "blue": [int(file.parent.name == "blue") for file in files],
            "is_valid": [file.parent.parent.name == "valid" for file in files],
        }
    )
    check(ImageDataLoaders.from_df(frame, folder, valid_col="is_valid", **CPU), 12, 6)
    columns = ["red", "blue"]
    hot = ImageDataLoaders.from_df(
        frame,
        folder,
        label_col=columns,
        y_block=MultiCategoryBlock(encoded=True, vocab=columns),
        seed=0,
        **CPU,
    )
    assert hot.vocab == columns
    for x, y in hot.train:
        for image, row in zip(x, y, strict=True):
            assert row.tolist() == [image[0].mean() > 0.5, image[2].mean() > 0.5]
    with pytest.raises(DataError, match="type bool, str cannot be sorted"):
        ImageDataLoaders.from_df(frame, folder, label_col=["label", "is_valid"], **CPU)
    frame["part"] = [file.parent.parent.name for file in files]
    several = ImageDataLoaders.from_df(frame, folder, label_col=["label", "part"], seed=0, **CPU)
    assert several.vocab == ["blue", "green", "red", "train", "valid"]
    assert several.one_batch()[1].sum(1).tolist() == [2] * 4
    frame.loc[3, "label"] = float("nan")
    with pytest.raises(DataError, match=r"training item Row\(.*: its label is missing"):
        ImageDataLoaders.from_df(frame, folder, valid_col="is_valid", **CPU)


def test_from_lists_takes_the_kind_of_target_from_the_labels(folder: Path) -> None:
    files = get_image_files(folder / "train" / "red")
    for labels, loss in (
        ([["a"], ["a", "b"], [], ["b"]], "BCEWithLogitsLossFlat"),
        ([0.5, 1.5, 2.5, 3.5], "MSELossFlat"),
        ([0, 1, 0, 1], "CrossEntropyLossFlat"),
    ):
        dls = ImageDataLoaders.from_lists(folder, files, labels, valid_pct=0, **CPU)
        assert type(dls.loss_func).__name__ == loss
    with pytest.raises(UsageError, match="4 fnames and 2 labels"):
        ImageDataLoaders.from_lists(folder, files, [1, 2], **CPU)
    with pytest.raises(DataError, match=r"label is missing"):
        ImageDataLoaders.from_lists(folder, files, [None, "a", "b", "b"], valid_pct=0, **CPU)


def test_the_trained_are_asked_about_files_arrays_and_pictures(folder: Path) -> None:
    files = get_image_files(folder / "valid")
    tfms = {"item_tfms": Resize(8), "batch_tfms": Normalize(*imagenet_stats)}
    labels = [file.parent.name for file in files]
    by_list = ImageDataLoaders.from_lists(folder, files, labels, **tfms, **CPU)
    by_folder = ImageDataLoaders.from_folder(folder, **tfms, **CPU)
    by_table = ImageDataLoaders.from_df(
        Table(["f", "l"], [*zip(files, labels, strict=True)]), **CPU
    )
    by_table = ImageDataLoaders.from_df(
        Table(["f", "l"], [*zip(files, labels, strict=True)]), **tfms, **CPU
    )
    for dls in (by_list, by_folder, by_table):
        opened = [Image.open(file) for file in files[:2]]
        arrays = [np.asarray(image) for image in opened]
        found = [
            dls.test_dl(items) for items in (files[:2], list(map(str, files[:2])), opened, arrays)
        ]
        batches = [next(iter(loader)) for loader in found]
        assert all(len(batch) == 1 and torch.equal(batch[0], batches[0][0]) for batch in batches)
        for wrong in (files[0], str(files[0]), opened[0]):
            with pytest.raises(UsageError, match="is no list of items"):
                dls.test_dl(wrong)
    rows = by_table.test_dl(by_table.valid_ds.items, with_labels=True)
    assert len(next(iter(rows))) == 2


def test_a_cache_and_a_policy_are_passed_on(folder: Path) -> None:
    (folder / "train/red/red_2.png").write_bytes(b"broken")
    for make in (ImageDataLoaders.from_folder, folder_dataloaders):
        dls = make(folder, num_workers=0, device="cpu", bs=12, cache=None, on_error="skip")
        assert dls.train.cache is None and dls.train.on_error == "skip"
        assert sum(len(y) for _, y in dls.train) == 11
        assert [skipped.index for skipped in dls.train.skipped] == [10]
    files = [*get_image_files(folder / "valid"), folder / "gone.png"]
    with pytest.raises(
        DataError, match=r"1 of 7 files in fnames do not exist, .*gone\.png \(row 6"
    ):
        ImageDataLoaders.from_path_func(folder, files, lambda f: "ab"[len(f.name) % 2], **CPU)
    dls = ImageDataLoaders.from_name_func(
        folder, files, lambda name: name[0], valid_pct=0, on_error="skip", **CPU
    )
    assert sum(len(y) for _, y in dls.train) in (3, 4, 6)


# The oddities of folders and tables


def test_a_folder_that_is_empty_or_not_there(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "valid").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        ImageDataLoaders.from_folder(tmp_path / "empty", **CPU)
    with pytest.raises(DataError, match="empty holds no images"):
        ImageDataLoaders.from_folder(tmp_path / "empty", valid_pct=0.2, **CPU)
    with pytest.raises(DataError, match="nowhere does not exist"):
        ImageDataLoaders.from_folder(tmp_path / "nowhere", **CPU)
    with pytest.raises(DataError, match=r"no folder 'valdi'; did you mean valid\? .*valid_pct="):
        ImageDataLoaders.from_folder(folder, valid="valdi", **CPU)


def test_an_empty_class_folder_is_warned_of(folder: Path) -> None:
    (folder / "train" / "black" / "deep").mkdir(parents=True)
    (folder / "train" / "black" / "notes.txt").touch()
    with pytest.warns(UserWarning, match=r"train/black holds no images: no class"):
        dls = ImageDataLoaders.from_folder(folder, **CPU)
    check(dls, 12, 6)


def test_images_outside_of_class_folders(folder: Path) -> None:
    picture(folder / "train" / "loose.png")
    with pytest.raises(DataError, match=r"loose\.png lies outside any class folder"):
        ImageDataLoaders.from_folder(folder, **CPU)


def test_a_class_that_only_validation_has(folder: Path) -> None:
    (folder / "valid" / "red").rename(folder / "valid" / "rde")
    with pytest.raises(DataError, match=r"validation item .*rde.*: its label 'rde' .*mean red\?"):
        ImageDataLoaders.from_folder(folder, **CPU)


def test_one_class(folder: Path) -> None:
    for part in ("train", "valid"):
        (folder / part / "red").rename(folder / "away" if part == "valid" else folder / "off")
        (folder / part / "blue").rename(folder / f"{part}_blue")
    with pytest.raises(DataError, match="one class, 'green'"):
        ImageDataLoaders.from_folder(folder, **CPU)


def test_one_class_in_a_folder_split_at_random(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "only" / f"{i}.png")
    with pytest.raises(DataError, match="one class, 'only'"):
        ImageDataLoaders.from_folder(tmp_path, valid_pct=0.25, **CPU)


def test_names_beyond_ascii(tmp_path: Path) -> None:
    names = ["naïve été", "猫", "🐕", "a b,c;d", "x" * 200]
    files = [picture(tmp_path / label / f"{label}.png") for label in names]
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=0, **CPU)
    assert dls.vocab == sorted(names) and len(dls.one_batch()[1]) == 4
    rows = "".join(f'"{file.relative_to(tmp_path)}","{file.stem}"\n' for file in files)
    (tmp_path / "labels.csv").write_text("file,label\n" + rows, encoding="utf-8")
    assert ImageDataLoaders.from_csv(tmp_path, valid_pct=0, **CPU).vocab == sorted(names)
    composed = unicodedata.normalize("NFC", "été")
    picture(tmp_path / f"{composed}.png")
    other = unicodedata.normalize("NFD", composed)
    with pytest.raises(DataError, match="the same in the Unicode form NFC"):
        ImageDataLoaders.from_lists(tmp_path, [tmp_path / f"{other}.png"], ["a"], **CPU)


def test_names_that_are_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    for name in (b"caf\xe9", b"\x1b[31mred"):
        try:
            picture(tmp_path / os.fsdecode(name) / "1.png")
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=0, **CPU)
    dls.summary()
    assert r"vocab of 2: \x1b[31mred, caf\udce9" in capsys.readouterr().out
    titles = {axes.get_title() for axes in dls.show_batch().axes}
    assert titles == {r"\x1b[31mred", r"caf\udce9"}


def table(folder: Path, text: str | bytes) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    (folder / "labels.csv").write_bytes(content)


RED, BLUE = "train/red/red_0.png", "train/blue/blue_0.png"


@pytest.mark.parametrize(
    ("text", "kwargs", "match"),
    [
        ("", {}, r"labels\.csv is empty"),
        ("file,label\n", {}, "has a header and no rows"),
        (f"file,label\n{RED},a\n{BLUE}\n", {}, "1 cells in line 3"),
        (f"file,label\n{RED},a\n{BLUE},\n", {}, r"Row\(.*: its label is missing \(None\)"),
        (f"file,label\n,a\n{BLUE},b\n", {}, "column 0 is empty in Row"),
        (f"file,label\n{RED},a\n{BLUE},b\n", {"label_col": "lable"}, "mean 'label'"),
        (f"file,label\n{RED},a\n{BLUE},b\n", {"fn_col": "name"}, "no column 'name'"),
        (f"file,label\n{RED},a\n{BLUE},b\n", {"valid_col": "is_valid"}, "no column 'is_valid'"),
        (f"file,label\n{RED},a\n{BLUE},b\n", {"label_col": 5}, "no column 5: the table has 2"),
        (f"file,label,label\n{RED},a,b\n", {"label_col": "label"}, "2 columns of the name 'label'"),
        (f"file,label\n{RED},a\ngone.png,b\n", {}, r"1 of 2 files .*gone\.png \(row 1 from 0"),
        (f"file,label\n{RED},a\n{RED[:-4]},b\n", {}, r"red_0 \(row 1.*There is 'red_0\.png'"),
        (f"file,label\n{RED},a\n{RED.upper()},b\n", {}, r"1 of 2 files"),
        (f"file,label\n{RED},a\n{'x' * 300}.png,b\n", {}, "1 of 2 files"),
        (f"file,label\n{RED},é\n".encode("latin-1"), {}, "not in the encoding"),
    ],
)
def test_odd_tables(folder: Path, text: str | bytes, kwargs: dict[str, Any], match: str) -> None:
    table(folder, text)
    with pytest.raises(DataError, match=match):
        ImageDataLoaders.from_csv(folder, **{"valid_pct": 0, **kwargs}, **CPU)


def test_tables_that_only_look_odd(folder: Path) -> None:
    table(folder, f"\ufeff file , label \r\n{RED},3\r\n\r\n{BLUE},10\r\n")
    dls = ImageDataLoaders.from_csv(folder, fn_col="file", label_col="label", valid_pct=0, **CPU)
    assert dls.vocab == [3, 10]
    table(folder, f"file,label,note,note\n{RED},a,1,2\n{BLUE},b,3,4\n")
    assert ImageDataLoaders.from_csv(folder, valid_pct=0, **CPU).vocab == ["a", "b"]
    absolute = folder / BLUE
    table(folder, f"file,label\n{RED},a\n{absolute},b\n")
    assert ImageDataLoaders.from_csv(folder, valid_pct=0, **CPU).train.n == 2


def test_a_row_that_is_there_twice(folder: Path) -> None:
    table(folder, f"file,label\n{RED},a\n{BLUE},b\n{RED},a\n")
    with pytest.warns(UserWarning, match=r"1 of 3 files are listed more than once, .*red_0\.png"):
        ImageDataLoaders.from_csv(folder, valid_pct=0, **CPU)


def test_items_in_both_parts(folder: Path) -> None:
    files = get_image_files(folder)
    plan = DataBlock(
        (ImageBlock, CategoryBlock), get_y=parent_label, splitter=lambda f: (range(9), range(8, 18))
    )
    with pytest.warns(UserWarning, match=r"1 of 18 items are in both parts, .*red_0"):
        plan.datasets(files)


def test_labels_of_several_types(folder: Path) -> None:
    files = get_image_files(folder / "train" / "red")
    with pytest.raises(DataError, match=r"type int, str cannot be sorted"):
        ImageDataLoaders.from_lists(folder, files, ["a", 1, "a", 1], valid_pct=0, **CPU)


def test_a_folder_with_the_usual_transforms(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dls = folder_dataloaders(folder, size=6, presize=8, bs=4, num_workers=0, device="cpu")
    assert dls.one_batch()[0].shape == (4, 3, 6, 6) and dls.train.seed == 42 and dls.valid.n == 6
    flat = folder_dataloaders(folder / "train", size=6, presize=8, bs=4, device="cpu")
    assert (flat.train.n, flat.valid.n) == (10, 2)
    (folder / "valid").rename(folder / "held_out")
    with pytest.raises(DataError, match="none of valid, val, test"):
        folder_dataloaders(folder)
    with pytest.raises(DataError, match="no folder"):
        folder_dataloaders(folder / "nowhere")


def test_show_batch_and_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    dls = ImageDataLoaders.from_folder(
        folder, batch_tfms=[*aug_transforms(max_lighting=0), Normalize(*imagenet_stats)], **CPU
    )
    figure = dls.show_batch(max_n=4)
    for axes in figure.axes:
        pixels = np.asarray(axes.images[0].get_array())
        assert np.abs(pixels.mean((0, 1)) - COLOURS[axes.get_title()]).max() < 6
    dls.summary()
    out = capsys.readouterr().out
    assert "vocab of 3: blue, green, red" in out and "x, ImageBlock: Tensor (4, 3, 8, 8)" in out
    tags = [["red", "warm"], [], ["red"], ["warm"]]
    files = get_image_files(folder / "train" / "red")
    multi = ImageDataLoaders.from_lists(folder, files, tags, valid_pct=0, **CPU)
    titles = {axes.get_title() for axes in multi.show_batch().axes}
    assert titles == {"red, warm", "(none)", "red", "warm"}


FASTAI = {  # names of the arguments, after cls, that fastai 2.8 takes by place
    "from_folder": "path train valid valid_pct seed vocab item_tfms batch_tfms",
    "from_path_func": "path fnames label_func valid_pct seed item_tfms batch_tfms",
    "from_lists": "path fnames labels valid_pct seed y_block item_tfms batch_tfms",
    "from_df": (
        "df path valid_pct seed fn_col folder suff label_col label_delim y_block valid_col "
        "item_tfms batch_tfms"
    ),
    "from_csv": "path csv_fname header delimiter quoting",
    "from_name_func": "path fnames label_func",
    "from_name_re": "path fnames pat",
    "from_path_re": "path fnames pat",
}


@pytest.mark.parametrize("name", FASTAI)
def test_arguments_have_the_names_that_hands_expect(name: str) -> None:
    parameters = list(inspect.signature(getattr(ImageDataLoaders, name)).parameters)
    expected = FASTAI[name].split()
    assert parameters[: len(expected)] == expected
