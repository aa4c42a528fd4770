"""What lies in folders of images: one subfolder a class, or the files that a list names."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from treadle.data import get_image_files
from treadle.errors import DataError, nearest

__all__ = ["check_files", "check_folder", "image_files_by_class"]


def image_files_by_class(path: Path, folders: Sequence[str] | None = None) -> list[Path]:
    """All images below `path` (in its subfolders `folders` only, if given).

    A class folder of `folders` that holds no image is warned of, and a link to none that is there.

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
    _warn_of_lost_links(roots)
    _warn_of_empty_classes(files, roots if folders else set())
    return files


def _warn_of_empty_classes(files: Sequence[Path], roots: set[Path]) -> None:
    full = {parent for file in files for parent in file.parents}
    for root in sorted(roots):
        for folder in sorted(root.iterdir()):
            if folder.is_dir() and folder not in full and not folder.name.startswith("."):
                warnings.warn(
                    f"The class folder {folder} holds no images: no class is made of it.",
                    stacklevel=2,
                )


def _warn_of_lost_links(roots: set[Path]) -> None:
    for root in sorted(roots):
        for entry in sorted(root.iterdir()):
            if entry.is_symlink() and not os.path.exists(entry):  # noqa: PTH110  (Path.exists raises for links in a circle)
                warnings.warn(
                    f"The link {entry} leads nowhere: no class is made of it.", stacklevel=2
                )


def check_folder(root: Path, name: str) -> None:
    """Raise `DataError` unless `root` has a folder `name`."""
    if not root.is_dir():
        raise DataError(f"The folder {root} does not exist; expected one that holds {name}.")
    if not (root / name).is_dir():
        folders = [entry.name for entry in root.iterdir() if entry.is_dir()]
        raise DataError(
            f"The folder {root} has no folder {name!r}; {nearest(name, folders)} Give train= and "
            "valid=, or valid_pct= to split at random."
        )


def check_files(files: Sequence[Path], whence: str, on_error: str | None) -> None:
    """Raise `DataError` for what is no file, unless it is to be skipped (`on_error`); warn of files
    that are listed twice. `whence` says in messages where they are listed."""
    twice = len(files) - len(set(files))
    if twice:
        example = Counter(files).most_common(1)[0][0]
        warnings.warn(
            f"{twice} of {len(files)} files are listed more than once, for example {example}: "
            "copies of one picture may train and validate.",
            stacklevel=3,
        )
    if on_error == "skip":
        return  # the loader does, and lists them
    missing = [(row, file) for row, file in enumerate(files) if not os.path.isfile(file)]  # noqa: PTH113  (Path.is_file raises for names that are too long)
    if missing:
        row, file = missing[0]
        there = os.path.exists(file)  # noqa: PTH110
        raise DataError(
            f"{len(missing)} of {len(files)} files in {whence} "
            f"{'are folders or devices' if there else 'do not exist'}, the first is {file} "
            f"(row {row} from 0).{'' if there else _other_spelling(file)} Check path=, folder= and "
            'suff=, or give on_error="skip" to do without them.'
        )


def _other_spelling(file: Path) -> str:
    """A hint where the folder holds the same name, as people read it, in other characters."""
    for form in ("NFC", "NFD"):
        other = file.with_name(unicodedata.normalize(form, file.name))
        if other != file and other.exists():
            return f" There is one whose name is the same in the Unicode form {form}."
    swapped = next(
        (p for p in file.parent.glob("*") if p.name.lower() == file.name.lower()),
        next((p for p in file.parent.glob(f"{file.name}.*")), None),
    )
    return f" There is {swapped.name!r}." if swapped is not None else ""
