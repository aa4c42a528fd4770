"""Real images that need no network: the digits that scikit-learn carries."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from treadle.data.home import data_home, install, scratch_folder

__all__ = ["digits_path"]


def digits_path(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder of 1,797 handwritten digits as grey 8 × 8 PNG files; written on the first call.

    It holds `train/<0..9>/` and `valid/<0..9>/`: every fifth image of a class, in the order of
    the source, is a validation image (20 %), so the split is the same everywhere. Pixels of 0..16
    are scaled to 0..255. `folder` is `data/digits` of `data_home()` unless given.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, 1998, https://doi.org/10.24432/C50P49 (its test part, as in scikit-learn).
    """
    goal = Path(folder).expanduser() if folder is not None else data_home() / "data" / "digits"
    if (goal / "train").is_dir():
        return goal
    with scratch_folder(goal) as scratch:
        _write(scratch)
        return install(scratch, goal)


def _write(folder: Path) -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    images = np.round(source.images * (255 / 16)).astype(np.uint8)
    for split in ("train", "valid"):
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
    seen = [0] * 10
    for index, (image, label) in enumerate(zip(images, source.target.tolist(), strict=True)):
        split = "valid" if seen[label] % 5 == 4 else "train"
        seen[label] += 1
        Image.fromarray(image).save(folder / split / str(label) / f"{index:04d}.png")
