"""A folder of images, one subfolder a class, as loaders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from treadle.data import (
    CategoryBlock,
    DataBlock,
    DataLoaders,
    GrandparentSplitter,
    ImageBlock,
    Normalize,
    RandomSplitter,
    Resize,
    aug_transforms,
    get_image_files,
    imagenet_stats,
    parent_label,
)
from treadle.errors import DataError

VALID_NAMES = ("valid", "val", "test")


def split_of_folder(path: Path, seed: int) -> tuple[Callable[..., Any], tuple[str, ...] | None]:
    """How a folder is split, and which of its subfolders hold the images (None: all).

    `train/<class>/*` beside `valid|val|test/<class>/*` is split as it stands; `<class>/*` at
    random by `seed`, a fifth for validation.

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
    if has_train and valid:
        return GrandparentSplitter(train_name="train", valid_name=valid), ("train", valid)
    if has_train:
        raise DataError(
            f"{path} has a folder train but none of {', '.join(VALID_NAMES)}; add one with images "
            f"to validate on, or give {path / 'train'} to have a part of it set aside."
        )
    return RandomSplitter(valid_pct=0.2, seed=seed), None


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
) -> DataLoaders:
    """Loaders of a folder of images with `train/<class>/*` and `valid|val|test/<class>/*`, or with
    `<class>/*` and a random split.

    Images are resized and cut to `presize` pixels, then augmented in batches to `size`: a random
    part of at least `min_scale` of the area, turned, warped, relit and, with `flip`, mirrored.

    Raises:
        DataError: if the folder is missing or empty, or holds fewer than two classes.
    """
    path = Path(path)
    splitter, folders = split_of_folder(path, seed)
    augment = aug_transforms(size=size, min_scale=min_scale, do_flip=flip)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=partial(image_files_by_class, folders=folders),
        splitter=splitter,
        get_y=parent_label,
        item_tfms=Resize(presize),
        batch_tfms=[*augment, Normalize.from_stats(*imagenet_stats)],
    )
    return block.dataloaders(path, bs=bs, seed=seed, num_workers=num_workers, device=device)


def image_files_by_class(path: Path, folders: Sequence[str] | None = None) -> list[Path]:
    """All images below `path` (in its subfolders `folders` only, if given).

    Raises:
        DataError: if there are none, or some lie outside any class folder.
    """
    files = get_image_files(path, folders=list(folders) if folders else None)
    if not files:
        raise DataError(
            f"{path} holds no images; give a folder with one subfolder of images for each class."
        )
    roots = {path / name for name in folders} if folders else {path}
    loose = next((file for file in files if file.parent in roots), None)
    if loose is not None:
        raise DataError(
            f"{loose} lies outside any class folder; move it into the folder of its class, or away."
        )
    return files
