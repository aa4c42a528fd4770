"""The oddities of folders and tables: each ends in a sentence that names the item, or in what the
documentation says. Each is run as it is, and is judged by its own last lines."""

from __future__ import annotations

import codecs
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from treadle.data import (
    CategoryBlock,
    ColSplitter,
    DataBlock,
    ImageBlock,
    RandomSplitter,
    parent_label,
)
from treadle.errors import DataError
from treadle.learner import Learner
from treadle.vision import ImageDataLoaders

CPU: dict[str, Any] = {"bs": 4, "num_workers": 0, "device": "cpu"}
ORDERED = {"shuffle_train": False, "drop_last": False}
COLOURS = {"red": (250, 0, 0), "blue": (0, 0, 250), "teal": (0, 128, 128)}
ROWS = ["train/red/0.png,red", "train/blue/1.png,blue", "valid/red/4.png,red"]


def picture(file: Path, colour: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), COLOURS[colour]).save(file)
    return file


@pytest.fixture
def folder() -> Iterator[Path]:
    """Eight pictures, `train` and `valid` of two classes; in a place that every user may enter."""
    made = Path(tempfile.mkdtemp(prefix="oddities-"))
    made.chmod(0o755)
    for part, indices in (("train", range(4)), ("valid", range(4, 8))):
        for index in indices:
            label = ("red", "blue")[index % 2]
            picture(made / part / label / f"{index}.png", label)
    yield made
    shutil.rmtree(made)


def from_folder(folder: Path, **kwargs: Any) -> ImageDataLoaders:
    return ImageDataLoaders.from_folder(folder, **{**CPU, **ORDERED, **kwargs})


def from_csv(folder: Path, text: str | bytes, **kwargs: Any) -> ImageDataLoaders:
    (folder / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return ImageDataLoaders.from_csv(folder, **{**CPU, **ORDERED, "valid_pct": 0, **kwargs})


def seen(dls: ImageDataLoaders) -> list[tuple[str, str]]:
    """An epoch of training: pairs (label, colour of the pixels)."""
    pairs = []
    for x, y in dls.train:
        for pixels, label in zip((x * 255).round().int(), y, strict=True):
            colour = tuple(pixels[:, 0, 0].tolist())
            pairs.append((dls.vocab[label], next(c for c, v in COLOURS.items() if v == colour)))
    return pairs


def refused(said: str, do: Callable[[], Any]) -> None:
    with pytest.raises(DataError, match=said) as caught:
        do()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 700


@contextmanager
def not_as_root() -> Iterator[None]:
    """As another user, where this one may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


ODDITIES: dict[str, Callable[[Path], None]] = {}


def oddity(name: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def add(check: Callable[[Path], None]) -> Callable[[Path], None]:
        assert name not in ODDITIES
        ODDITIES[name] = check
        return check

    return add


# Folders


@oddity("empty class")
def _(folder: Path) -> None:
    (folder / "train" / "green").mkdir()
    with pytest.warns(UserWarning, match="train/green holds no images: no class is made of it"):
        dls = from_folder(folder)
    assert dls.vocab == ["blue", "red"]


@oddity("unreadable file")
def _(folder: Path) -> None:
    bad = folder / "train" / "red" / "0.png"
    bad.chmod(0)
    dls = from_folder(folder, cache=None)
    skipping = from_folder(folder, on_error="skip")
    with not_as_root():
        refused(r"red/0\.png cannot be read \(Permission denied\)", lambda: seen(dls))
        assert len(seen(skipping)) == 3
    assert [skipped.item for skipped in skipping.train.skipped] == [str(bad)]


@oddity("unreadable folder")
def _(folder: Path) -> None:
    (folder / "train" / "red").chmod(0)
    with not_as_root():
        refused(r"train/red cannot be read \(Permission denied\)", lambda: from_folder(folder))
    (folder / "train" / "red").chmod(0o755)


@oddity("dangling link")
def _(folder: Path) -> None:
    bad = folder / "train" / "red" / "lost.png"
    bad.symlink_to("nowhere.png")
    refused(r"red/lost\.png cannot be read \(No such file", lambda: seen(from_folder(folder)))
    dls = from_folder(folder, on_error="skip")
    assert len(seen(dls)) == 4 and [skipped.item for skipped in dls.train.skipped] == [str(bad)]
    bad.unlink()
    (folder / "train" / "green").symlink_to("unmounted")  # a whole class
    with pytest.warns(UserWarning, match="link .*train/green leads nowhere: no class"):
        from_folder(folder)


@oddity("looping link")
def _(folder: Path) -> None:
    (folder / "train" / "red" / "up").symlink_to(folder / "train")  # not followed: documented
    assert from_folder(folder).train.n == 4
    (folder / "train" / "red" / "ring.png").symlink_to("ring.png")
    said = r"red/ring\.png cannot be read \(Too many levels of symbolic links\)"
    refused(said, lambda: seen(from_folder(folder)))


@oddity("directory named .jpg")
def _(folder: Path) -> None:
    (folder / "train" / "red" / "dir.jpg").mkdir()
    assert from_folder(folder).train.n == 4  # a folder is entered, whatever its name
    text = "\n".join(["file,label", *ROWS, "train/red/dir.jpg,red"])
    said = r"1 of 4 files .* are folders or devices, the first is .*dir\.jpg \(row 3 from 0\)"
    refused(said, lambda: from_csv(folder, text))


@oddity("pipe named .jpg")
def _(folder: Path) -> None:
    os.mkfifo(folder / "train" / "red" / "pipe.jpg")
    refused(r"pipe\.jpg cannot be read \(it is a pipe", lambda: seen(from_folder(folder)))


@oddity("non-UTF-8 and 255-byte names")
def _(folder: Path) -> None:
    for name in (os.fsdecode(b"caf\xe9.png"), "n" * 251 + ".png", "ü" * 125 + "1.png"):
        picture(folder / "train" / "red" / name, "red")
    assert seen(from_folder(folder)).count(("red", "red")) == 5
    bad = folder / "train" / "red" / os.fsdecode(b"\xff.png")
    bad.write_bytes(b"")
    refused(r"\\udcff\.png is empty|\udcff\.png is empty", lambda: seen(from_folder(folder)))


@oddity("case twins")
def _(folder: Path) -> None:
    """Two files and two classes, as the file system has them."""
    twin = picture(folder / "train" / "red" / "0.PNG", "red")
    if not (folder / "train" / "red" / "0.png").samefile(twin):
        assert from_folder(folder).train.n == 5
    picture(folder / "train" / "RED" / "0.png", "teal")
    if not (folder / "train" / "red").samefile(folder / "train" / "RED"):
        dls = from_folder(folder)
        assert dls.vocab == ["RED", "blue", "red"] and ("RED", "teal") in seen(dls)


@oddity("one class")
def _(folder: Path) -> None:
    for part in ("train", "valid"):
        shutil.rmtree(folder / part / "blue")
    refused("There is one class, 'red'", lambda: from_folder(folder))


@oddity("file deleted during training")
def _(folder: Path) -> None:
    bad = folder / "train" / "blue" / "3.png"
    for on_error, cache in (("raise", None), ("skip", None), ("raise", "memory")):
        picture(bad, "blue")
        dls = from_folder(folder, on_error=on_error, cache=cache)
        assert len(seen(dls)) == 4
        bad.unlink()
        if cache == "memory":
            assert len(seen(dls)) == 4  # each file is read once: documented
        elif on_error == "raise":
            refused(r"blue/3\.png cannot be read \(No such file", lambda dls=dls: seen(dls))
        else:
            assert len(seen(dls)) == 3 and len(dls.train.skipped) == 1


@oddity("file changed during training")
def _(folder: Path) -> None:
    """Files are read anew each epoch without a cache, and once with one."""
    first = folder / "train" / "blue" / "1.png"
    anew, once = from_folder(folder, cache=None), from_folder(folder, cache="memory")
    assert seen(anew)[0] == seen(once)[0] == ("blue", "blue")
    picture(first, "teal")
    assert seen(anew)[0] == ("blue", "teal") and seen(once)[0] == ("blue", "blue")
    first.write_bytes(first.read_bytes()[:45])
    refused(r"blue/1\.png \(45 bytes\) does not decode", lambda: seen(anew))


# Tables


@oddity("BOM and CRLF")
def _(folder: Path) -> None:
    text = codecs.BOM_UTF8.decode() + "\r\n".join([" file , label ", *ROWS, "", ""])
    dls = from_csv(folder, text, fn_col="file", label_col="label")
    assert sorted(seen(dls)) == [("blue", "blue"), ("red", "red"), ("red", "red")]


@oddity("NaN label")
def _(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame([row.split(",") for row in ROWS], columns=["file", "label"])
    table.loc[1, "label"] = float("nan")
    said = r"blue/1\.png.*: its label is missing \(nan\)"
    refused(said, lambda: ImageDataLoaders.from_df(table, folder, valid_pct=0, **CPU))
    text = "\n".join(["file,label", *ROWS]).replace(",blue", ",")
    refused(r"blue/1\.png.*: its label is missing \(None\)", lambda: from_csv(folder, text))


@oddity("missing column")
def _(folder: Path) -> None:
    text = "\n".join(["file,label", *ROWS])
    said = "no column 'lable' in the table; did you mean 'label'"
    refused(said, lambda: from_csv(folder, text, label_col="lable"))
    refused("no column 2: the table has 2", lambda: from_csv(folder, text, label_col=2))


@oddity("one sample")
def _(folder: Path) -> None:
    text = "\n".join(["file,label", ROWS[0]])
    refused("There is one class, 'red'", lambda: from_csv(folder, text))
    plan = DataBlock((ImageBlock, CategoryBlock(["red", "blue"])), get_y=parent_label)
    with pytest.warns(UserWarning, match="leaves none of 1 items to validate on"):
        dls = plan.dataloaders([folder / "train" / "red" / "0.png"], **CPU)
    assert [len(x) for x, _ in dls.train] == [1]  # though the last, smaller batch is dropped


@oddity("duplicate row")
def _(folder: Path) -> None:
    text = "\n".join(["file,label", *ROWS, ROWS[0]])
    with pytest.warns(UserWarning, match=r"1 of 4 files are listed more than once, .*red/0\.png"):
        from_csv(folder, text)


@oddity("label not in vocab")
def _(folder: Path) -> None:
    (folder / "valid" / "red").rename(folder / "valid" / "rde")
    said = r"validation item .*valid/rde/4\.png: its label 'rde' .*did you mean red"
    refused(said, lambda: from_folder(folder))


@oddity("quoted newlines")
def _(folder: Path) -> None:
    odd = picture(folder / "train" / "red" / "two\nlines.png", "red")
    rows = [*ROWS, f'"{odd.relative_to(folder)}","dark\nred"']
    dls = from_csv(folder, "\n".join(["file,label", *rows]))
    assert dls.vocab == ["blue", "dark\nred", "red"] and ("dark\nred", "red") in seen(dls)
    said = "1 cells in line 8 and 2 in the first"  # lines as an editor counts them
    refused(said, lambda: from_csv(folder, "\n".join(["file,label", *rows, "short"])))


@oddity("duplicated header")
def _(folder: Path) -> None:
    text = "\n".join(["file,label,label", *(row + ",x" for row in ROWS)])
    said = "2 columns of the name 'label', the columns 1 and 2 from 0"
    refused(said, lambda: from_csv(folder, text, label_col="label"))
    assert from_csv(folder, text, label_col=1).vocab == ["blue", "red"]
    twice = "\n".join(["file,label", *ROWS[:2], "file,label", ROWS[2]])  # two tables, one file
    said = r"1 of 4 files .* do not exist, the first is .*/file \(row 2 from 0\)"
    refused(said, lambda: from_csv(folder, twice))


@oddity("empty file")
def _(folder: Path) -> None:
    refused(r"labels\.csv is empty", lambda: from_csv(folder, ""))
    refused(r"labels\.csv has a header and no rows", lambda: from_csv(folder, "file,label\n"))


@oddity("semicolons")
def _(folder: Path) -> None:
    text = "\n".join(["file,label", *ROWS]).replace(",", ";")
    refused(
        "no ',' in its first line, 'file;label'; give delimiter=';'", lambda: from_csv(folder, text)
    )
    assert from_csv(folder, text, delimiter=";").vocab == ["blue", "red"]


@oddity("wrong encoding")
def _(folder: Path) -> None:
    text = "\n".join(["file,label", *ROWS]).replace(",blue", ",bleuâtre")
    for encoding in ("latin-1", "utf-16"):
        data = text.encode(encoding)
        refused(r"labels\.csv is not in the encoding utf-8", lambda d=data: from_csv(folder, d))
        assert from_csv(folder, data, encoding=encoding).vocab == ["bleuâtre", "red"]
    data = text.replace("â", "a").encode("utf-16-le")
    refused(r"labels\.csv holds a NUL character in line 2", lambda: from_csv(folder, data))


@oddity("column of mixed types")
def _(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    files = [row.split(",")[0] for row in ROWS]
    table = pandas.DataFrame({"file": files, "label": ["red", 7, "red"]})
    said = "Labels of type int, str cannot be sorted .*for example 7, 'red'"
    refused(said, lambda: ImageDataLoaders.from_df(table, folder, valid_pct=0, **CPU))
    text = "\n".join(["file,label", *ROWS]).replace(",blue", ",7")
    assert from_csv(folder, text).vocab == ["7", "red"]  # text, as documented


@oddity("ragged line")
def _(folder: Path) -> None:
    text = "\n".join(["file,label", *ROWS]).replace(",blue", ",blue,pale")
    refused("3 cells in line 3 and 2 in the first", lambda: from_csv(folder, text))


@oddity("file that is not there")
def _(folder: Path) -> None:
    text = "\n".join(["file,label", *ROWS]).replace("1.png", "9.png")
    said = r"1 of 3 files .* do not exist, the first is .*blue/9\.png \(row 1 from 0\)"
    refused(said, lambda: from_csv(folder, text))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ODDITIES)
def test_oddities(name: str, folder: Path) -> None:
    ODDITIES[name](folder)


def test_there_are_more_than_20() -> None:
    assert len(ODDITIES) >= 20


# What makes validation worth nothing is told before anything is trained


def test_one_file_in_both_parts(folder: Path) -> None:
    files = sorted((folder / "train").rglob("*.png"))
    plan = DataBlock(get_y=parent_label, splitter=lambda items: ([0, 1, 2, 3], [4, 5]))
    with pytest.warns(UserWarning, match=r"1 of 6 items are in both parts, .*blue/1\.png"):
        plan.datasets([*files, str(files[0]), folder / "valid" / "red" / "4.png"])
    with pytest.warns(UserWarning, match="4 of 4 items are in both parts"):
        from_folder(folder, train="train", valid="train")


def test_nothing_to_validate_on(folder: Path) -> None:
    files = sorted((folder / "train").rglob("*.png"))
    plan = DataBlock(get_y=parent_label, splitter=RandomSplitter(0.2))
    with pytest.warns(UserWarning, match=r"valid_pct=0\.2\) leaves none of 4 items to validate on"):
        plan.datasets(files)
    rows = [{"is_valid": False, "file": file} for file in files]
    with pytest.warns(UserWarning, match=r"ColSplitter\('is_valid'\) leaves none of 4 items"):
        assert ColSplitter()(rows) == ([0, 1, 2, 3], [])
    shutil.rmtree(folder / "valid")
    (folder / "valid").mkdir()
    refused("found no item under valid_name='valid'", lambda: from_folder(folder))


def test_drop_last_never_drops_all(folder: Path) -> None:
    dls = from_folder(folder, bs=64, drop_last=True)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(90, 2)))
    learn.fit(1)
    assert len(dls.train) == 1 and len(learn.recorder.losses) == 1
    assert np.isfinite(learn.recorder.values[0][0]) and torch.isfinite(dls.one_batch()[0]).all()


def test_all_is_skipped(folder: Path) -> None:
    """An epoch without one readable picture is an error that says what was wrong with the last."""
    for file in (folder / "train").rglob("*.png"):
        file.write_bytes(b"no picture")
    dls = from_folder(folder, on_error="skip")
    refused(r"No sample of the batch could be read: .*red/2\.png", dls.one_batch)
    assert not list(dls.train)
    assert re.search("none of JPEG", dls.train.skipped[0].reason)
