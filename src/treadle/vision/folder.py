"""A folder of images, one subfolder a class, as loaders with the usual transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from treadle.data import DataLoaders, Normalize, Resize, aug_transforms, imagenet_stats
from treadle.errors import DataError
from treadle.vision.dataloaders import ImageDataLoaders

VALID_NAMES = ("valid", "val", "test")


def split_of_folder(path: Path) -> str | None:
    """The name of the folder that validates, beside `train`; None for `<class>/*` alone.

    Raises:
        DataError: if there is no such folder, or only one side of a split.
    """
    if not path.is_dir():
        raise DataError(
            f"there is no folder {path}; give a folder with one subfolder of images for each "
            "class, or the name of a data set: digits, imagenette-160."
        )
    valid = next((name for name in VALID_NAMES if (path / name).is_dir()), None)
    has_train = (path / "train").is_dir()
    if has_train and not valid:
        raise DataError(
            f"{path} has a folder train but none of {', '.join(VALID_NAMES)}; add one with images "
            f"to validate on, or give {path / 'train'} to have a part of it set aside."
        )
    return valid if has_train else None


def folder_dataloaders(
    path: str | Path,
    size: int = 128,
    presize: int = 160,
    bs: int = 64,
    seed: int = 42,
    flip: bool = True,
    min_scale: float = 0.5,
    num_workers: int | None = None,
    device: Any = None,
    cache: str | None = "auto",
    on_error: str = "raise",
    global_bs: int | None = None,
) -> DataLoaders:
    """Loaders of a folder of images with `train/<class>/*` and `valid|val|test/<class>/*`, or with
    `<class>/*`, of which a random fifth validates.

    Images are resized and cut to `presize` pixels, then augmented in batches to `size`: a random
    part of at least `min_scale` of the area, turned, warped, relit and, with `flip`, mirrored.
    `cache`, `on_error` and `global_bs` are those of `DataLoader`.

    Raises:
        DataError: if the folder is missing or empty, or holds fewer than two classes.
    """
    path = Path(path)
    valid = split_of_folder(path)
    augment = aug_transforms(size=size, min_scale=min_scale, do_flip=flip)
    return ImageDataLoaders.from_folder(
        path,
        valid=valid or "valid",
        valid_pct=None if valid else 0.2,
        seed=seed,
        item_tfms=Resize(presize),
        batch_tfms=[*augment, Normalize.from_stats(*imagenet_stats)],
        bs=bs,
        global_bs=global_bs,
        num_workers=num_workers,
        device=device,
        cache=cache,
        on_error=on_error,
    )
