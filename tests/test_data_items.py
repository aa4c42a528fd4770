"""Getters, splitters and the embedded digits, on real folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from treadle.data import (
    GrandparentSplitter,
    RandomSplitter,
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
    assert names(tmp_path / "data") == ["linked/cat/1.jpg"]


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
