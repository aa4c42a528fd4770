"""24 kinds of pictures at the first, the middle and the last place of a folder, with 0 and 2
workers: each shows the right colours, or is named (`on_error="raise"`) or listed ("skip")."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from image_kinds import HEIGHT, KINDS, PNG, WIDTH, Kind, pillow
from torch import nn

from treadle.data import Resize
from treadle.errors import DataError
from treadle.learner import Learner
from treadle.vision import ImageDataLoaders

pytestmark = [
    pytest.mark.timeout(60),  # a hang is a failure, soon
    # Pillow warns of what it finds odd before it fails, or decodes all the same
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
]

SOUND = 8
BS = 3
PLACES = {"first": 0, "middle": SOUND // 2, "last": SOUND}


def loaders(
    folder: Path, kind: Kind, place: str, workers: int, on_error: str
) -> tuple[ImageDataLoaders, list[Path]]:
    """Loaders of 8 sound pictures and, at `place` among them, those of `kind`; and the latter."""
    for part, count in (("train", SOUND), ("valid", 1)):
        for index in range(count):
            file = folder / part / "ab"[index >= count // 2] / f"{2 * index + 1:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(PNG)
    at = PLACES[place]
    odd = [
        folder / "train" / "ab"[at >= SOUND // 2] / f"{2 * at:02}-{number}{kind.suffix}"
        for number in range(len(kind.files))
    ]
    for file, data in zip(odd, kind.files, strict=True):
        file.write_bytes(data)
    dls = ImageDataLoaders.from_folder(
        folder,
        vocab=["a", "b"],
        item_tfms=Resize((HEIGHT, WIDTH), method="squish"),
        bs=BS,
        shuffle_train=False,
        drop_last=False,
        num_workers=workers,
        device="cpu",
        on_error=on_error,
    )
    assert dls.train.dataset.items[at : at + len(odd)] == odd
    return dls, odd


def assert_pixels(x: torch.Tensor, file: Path, slack: int) -> None:
    found = (x * 255).round().permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - pillow(file.read_bytes())).max() <= slack, file.name


def batches(dls: ImageDataLoaders, kind: Kind, odd: list[Path]) -> list[int]:
    """The sizes of an epoch's batches, the colours of all pictures in them being right."""
    sizes = []
    for x, y in dls.train:
        sizes.append(len(x))
        for pixels, label, index in zip(x, y, dls.train.indices, strict=True):
            file = dls.train.dataset.items[index]
            assert dls.vocab[label] == file.parent.name
            assert_pixels(pixels, file, kind.slack if file in odd else 0)
    return sizes


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", KINDS)
def test_raise(name: str, place: str, workers: int, tmp_path: Path) -> None:
    """File, kind and index are named, or the colours are right; and the loader goes on after it."""
    kind = KINDS[name]
    dls, odd = loaders(tmp_path, kind, place, workers, "raise")
    start = time.perf_counter()
    if kind.said is None:
        assert sum(batches(dls, kind, odd)) == SOUND + len(odd)
    else:
        with pytest.raises(DataError, match=kind.said) as caught:
            batches(dls, kind, odd)
        assert str(odd[0]) in str(caught.value)
        assert f"While reading sample {PLACES[place]}: {odd[0]}" in caught.value.__notes__
    assert time.perf_counter() - start < 5
    assert not [t for t in threading.enumerate() if t.name.startswith("treadle-data")]
    assert [len(x) for x, _ in dls.valid] == [1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", KINDS)
def test_skip(name: str, place: str, workers: int, tmp_path: Path) -> None:
    """The epoch ends; what was left out is counted and listed once, and only its batch is smaller.

    The second epoch comes from the cache, and is the same.
    """
    kind = KINDS[name]
    dls, odd = loaders(tmp_path, kind, place, workers, "skip")
    bad = set() if kind.said is None else set(range(PLACES[place], PLACES[place] + len(odd)))
    count = SOUND + len(odd)
    expected = [len({*range(at, min(at + BS, count))} - bad) for at in range(0, count, BS)]
    for _ in range(2):
        assert batches(dls, kind, odd) == [size for size in expected if size]
        listed = {skipped.index: skipped for skipped in dls.train.skipped}
        assert listed.keys() == bad and len(dls.train.skipped) == len(bad)
        for index, file in zip(sorted(bad), odd, strict=False):
            assert listed[index].item == str(file)
            assert re.search(str(kind.said), listed[index].reason)
            assert str(file) in listed[index].reason


def test_there_are_24_kinds_and_144_cases() -> None:
    assert len(KINDS) == 24 and len(KINDS) * len(PLACES) * 2 == 144


@pytest.mark.parametrize("workers", [0, 2])
def test_training(workers: int, tmp_path: Path) -> None:
    """By "raise" a fit ends at the file that it names; by "skip" it ends as planned."""
    kind = KINDS["header only"]
    for on_error in ("raise", "skip"):
        dls, (bad,) = loaders(tmp_path / on_error, kind, "middle", workers, on_error)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * HEIGHT * WIDTH, 2))
        learn = Learner(dls, model, path=tmp_path)
        if on_error == "raise":
            with pytest.raises(DataError, match=re.escape(str(bad))):
                learn.fit(1)
            bad.write_bytes(PNG)
            learn.fit(1)  # mended, the same learner goes on
            assert not dls.train.skipped
        else:
            learn.fit(2)
            assert [skipped.item for skipped in dls.train.skipped] == [str(bad)]
            assert len(learn.recorder.values) == 2
