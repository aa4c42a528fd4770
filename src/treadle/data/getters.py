"""Find the items, and read from an item what it is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from treadle.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "get_image_files", "parent_label"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def get_image_files(
    path: str | os.PathLike[str],
    recurse: bool = True,
    folders: str | Sequence[str] | None = None,
) -> list[Path]:
    """The image files under `path`, sorted; which files are images their suffixes say.

    `recurse=False` stays in `path` itself. `folders` names the folders directly in `path` that are
    entered; None enters all. Names that begin with a dot are skipped. Links to folders are
    followed, except back to a folder that holds them.

    Raises `DataError` where `path` is missing or no folder.
    """
    root = Path(path)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"The folder {root} {what}; expected a folder that holds images.")
    wanted = None if folders is None else {folders} if isinstance(folders, str) else set(folders)
    if not recurse:
        wanted = set()
    return [Path(file) for file in _walk(str(root), wanted, frozenset())]


def _walk(folder: str, wanted: set[str] | None, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    here = Path(folder).stat()
    above = above | {(here.st_dev, here.st_ino)}
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            status = entry.stat()
            around = (status.st_dev, status.st_ino) in above
            if not around and (wanted is None or entry.name in wanted):
                yield from _walk(entry.path, None, above)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and entry.is_file():  # noqa: PTH122  (entries are plain strings, and many)
            yield entry.path


def parent_label(item: str | os.PathLike[str]) -> str:
    """The name of the folder that holds the file `item`.

    >>> parent_label("train/n01440764/fish.JPEG")
    'n01440764'
    """
    return Path(item).parent.name
