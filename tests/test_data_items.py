"""Getters, splitters and the embedded digits, on real folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from treadle.data import (
    ColSplitter,
    FileSplitter,
    FuncSplitter,
    GrandparentSplitter,
    IndexSplitter,
    MaskSplitter,
    RandomSplitter,
    Table,
    TrainTestSplitter,
    digits_path,
    get_image_files,
    parent_label,
)
from treadle.errors import DataError, UsageError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(root: Path, **kwargs: object) -> list[str]:
    return [str(p.relative_to(root)) for p in get_image_files(root, **kwargs)]  # type: ignore[arg-type]


def test_image_files_are_found_by_suffix_and_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.JPEG", "b/10.jpg", "a/x.Png", "a.webp", "a-b/y.tiff", "z.gif", "q.bmp")
    touch(tmp_path, "notes.txt", "jpg", ".hidden.jpg", ".git/x.jpg", "b/.thumbs/1.jpg")
    (tmp_path / "folder.jpg").mkdir()
    files = get_image_files(tmp_path)
    assert files == sorted(files)
    assert names(tmp_path) == [
        *("a/x.Png", "a-b/y.tiff", "a.webp", "b/10.jpg", "b/2.JPEG", "q.bmp", "z.gif"),
    ]
    assert names(tmp_path, recurse=False) == ["a.webp", "q.bmp", "z.gif"]
    assert names(tmp_path, folders=["b"]) == ["a.webp", "b/10.jpg", "b/2.JPEG", "q.bmp", "z.gif"]
    assert names(tmp_path, folders="b") == names(tmp_path, folders=["b"])


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "real", "cat/1.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/linked").symlink_to(tmp_path / "real")
    (tmp_path / "real/cat/again").symlink_to(tmp_path / "real")
    (tmp_path / "real/broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "real/circle.jpg").symlink_to(tmp_path / "real/circle.jpg")
    # a link that leads nowhere is named when it is read, not passed over in silence
    listed = ["linked/broken.jpg", "linked/cat/1.jpg", "linked/circle.jpg"]
    assert names(tmp_path / "data") == listed


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        get_image_files(tmp_path / "nowhere")
    touch(tmp_path, "file.jpg")
    with pytest.raises(DataError, match=r"file\.jpg is not a folder"):
        get_image_files(tmp_path / "file.jpg")


def test_parent_label() -> None:
    assert parent_label(Path("/d/train/cat/1.jpg")) == "cat"


def test_grandparent_splitter() -> None:
    items = [Path(p) for p in ("d/val/a/1", "d/train/a/2", "d/test/b/3", "d/train/b/4")]
    assert GrandparentSplitter(valid_name="val")(items) == ([1, 3], [0])
    both = GrandparentSplitter(train_name=("train", "test"), valid_name=("valid", "val"))
    assert both(items) == ([1, 2, 3], [0])
    with pytest.raises(DataError, match=r"valid_name='valid'.* 'test', 'train', 'val'.*\(valid_na"):
        GrandparentSplitter()(items)
    with pytest.raises(DataError, match=r"GrandparentSplitter\(train_name=\.\.\.\)"):
        GrandparentSplitter(train_name="tran", valid_name="val")(items)


def test_random_splitter_parts_are_complete_and_apart() -> None:
    train, valid = RandomSplitter(0.25, seed=7)(range(101))
    assert len(valid) == 25
    assert sorted([*train, *valid]) == list(range(101))
    assert RandomSplitter(0.25, seed=7)(range(101)) == (train, valid)
    assert RandomSplitter(0.25, seed=8)(range(101)) != (train, valid)


def test_random_splitter_and_the_global_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    RandomSplitter(seed=1)(range(50))
    assert torch.equal(torch.get_rng_state(), before)
    first = RandomSplitter()(range(50))
    torch.manual_seed(5)
    assert RandomSplitter()(range(50)) == first
    with pytest.raises(UsageError, match="valid_pct=1"):
        RandomSplitter(1.0)


def test_digits_are_scikit_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    path = digits_path()
    assert path == tmp_path / "data" / "digits"
    source = load_digits()
    files = get_image_files(path)
    train, valid = GrandparentSplitter()(files)
    assert (len(files), len(train), len(valid)) == (1797, 1442, 355)
    for file in files[::97]:
        index = int(file.stem)
        assert parent_label(file) == str(source.target[index])
        with Image.open(file) as image:
            assert (image.mode, image.size) == ("L", (8, 8))
            back = np.asarray(image).astype(float) * 16 / 255
        assert np.abs(back - source.images[index]).max() < 16 / 255
    stamp = files[0].stat().st_mtime_ns
    assert digits_path() == path and files[0].stat().st_mtime_ns == stamp
    again = get_image_files(digits_path(tmp_path / "other"))
    assert [f.relative_to(tmp_path / "other") for f in again] == [
        f.relative_to(path) for f in files
    ]
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["digits"]


def test_splitters_by_place_by_mask_and_by_function() -> None:
    items = list("abcde")
    for splitter in (
        IndexSplitter([1, 3]),
        IndexSplitter(np.array([3, -4])),
        MaskSplitter([False, True, False, True, False]),
        FuncSplitter(lambda item: item in "bd"),
    ):
        assert splitter(items) == ([0, 2, 4], [1, 3])
    assert IndexSplitter(4)(items) == ([0, 1, 2, 3], [4])
    with pytest.raises(DataError, match="index 5; there are 5 items"):
        IndexSplitter([5])(items)
    with pytest.raises(DataError, match="mask of 2 values for 5 items"):
        MaskSplitter([True, False])(items)


def test_splitting_by_a_list_of_names(tmp_path: Path) -> None:
    listed = tmp_path / "valid.txt"
    listed.write_text("\ufeffb.jpg\r\n  d.jpg\n\nfolder/e.jpg\n", encoding="utf-8")
    items = [Path(f"x/{name}.jpg") for name in "abcde"]
    assert FileSplitter(listed)(items) == ([0, 2], [1, 3, 4])
    with pytest.raises(DataError, match=r"1 of 3 names in .* are of no item, .*'e\.jpg'"):
        FileSplitter(listed)(items[:4])
    with pytest.raises(DataError, match="cannot be read"):
        FileSplitter(tmp_path / "none.txt")(items)
    listed.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not UTF-8"):
        FileSplitter(listed)(items)


@pytest.mark.parametrize("yes", [True, 1, 1.0, "True", "yes", "1", np.True_])
@pytest.mark.parametrize("no", [False, 0, "false", "No", "0"])
def test_splitting_by_a_column(yes: object, no: object) -> None:
    rows = Table(["name", "is_valid"], [("a", no), ("b", yes), ("c", no)])
    assert ColSplitter()(rows) == ([0, 2], [1])
    assert ColSplitter(1)(rows) == ([0, 2], [1])
    assert ColSplitter()([{"is_valid": no}, {"is_valid": yes}]) == ([0], [1])


def test_splitting_by_a_value_of_a_column() -> None:
    rows = Table(["part"], [("train",), ("dev",), ("test",), (None,)])
    assert ColSplitter("part", on="dev")(rows) == ([0, 2, 3], [1])
    assert ColSplitter("part", on=["dev", "test"])(rows) == ([0, 3], [1, 2])
    with pytest.raises(DataError, match=r"holds 'train' in row 0, .*on='train'"):
        ColSplitter("part")(rows)
    with pytest.raises(DataError, match=r"no row has it; the column holds 'train', 'dev'"):
        ColSplitter("part", on="valid")(rows)
    with pytest.raises(DataError, match="no column 'is_valid'"):
        ColSplitter()(rows)
    with pytest.raises(DataError, match="holds None in row 1"):
        ColSplitter()(Table(["is_valid"], [(True,), (None,)]))


def test_train_test_splitter_is_scikit_learns() -> None:
    from sklearn.model_selection import train_test_split

    labels = ["a"] * 70 + ["b"] * 20 + ["c"] * 10
    numbers = list(range(100))
    for kwargs in ({}, {"stratify": labels}, {"shuffle": False}):
        state = 7 if kwargs.get("shuffle", True) else None
        train, valid = train_test_split(numbers, test_size=0.2, random_state=state, **kwargs)
        assert TrainTestSplitter(0.2, 7, **kwargs)(numbers) == (train, valid)


@given(
    counts=st.lists(st.integers(2, 40), min_size=2, max_size=5),
    size=st.floats(0.2, 0.5),
    seed=st.integers(0, 99),
)
def test_each_class_has_its_share(counts: list[int], size: float, seed: int) -> None:
    items = [f"{label}/{i}.jpg" for label, count in enumerate(counts) for i in range(count)]
    if size * len(items) < len(counts):  # scikit-learn refuses: a class would have none
        return
    train, valid = TrainTestSplitter(size, seed, stratify=parent_label)(items)
    assert sorted(train + valid) == list(range(len(items)))
    for label, count in enumerate(counts):
        there = sum(parent_label(items[index]) == str(label) for index in valid)
        assert abs(there - count * len(valid) / len(items)) <= 1


def test_classes_that_cannot_be_stratified() -> None:
    items = ["a/1", "a/2", "b/1"]
    with pytest.raises(DataError, match=r"class 'b' has one item \(number 2\)"):
        TrainTestSplitter(0.5, stratify=parent_label)(items)
    with pytest.raises(DataError, match="2 classes for 3 items"):
        TrainTestSplitter(0.5, stratify=["a", "b"])(items)
    with pytest.raises(DataError, match="cannot split 3 items"):
        TrainTestSplitter(5)(items)
    torch.manual_seed(3)
    first = TrainTestSplitter()(range(20))
    torch.manual_seed(3)
    assert TrainTestSplitter()(range(20)) == first != TrainTestSplitter()(range(20))
