"""Find the items, and read from an item what it is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from treadle.data.blocks.base import is_missing
from treadle.data.table import Column, Row
from treadle.errors import DataError, nearest
from treadle.registry import register

__all__ = ["IMAGE_SUFFIXES", "ColReader", "RegexLabeller", "get_image_files", "parent_label"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def get_image_files(
    path: str | os.PathLike[str],
    recurse: bool = True,
    folders: str | Sequence[str] | None = None,
) -> list[Path]:
    """The image files under `path`, sorted; which files are images their suffixes say.

    `recurse=False` stays in `path` itself. `folders` names the folders directly in `path` that are
    entered; None enters all. Names that begin with a dot are skipped. Links to folders are
    followed, except back to a folder that holds them. A link that leads nowhere is listed by its
    suffix like a file, so that reading it names it, or skips it (`on_error`).

    Raises `DataError` where `path` is missing or no folder, or where a folder may not be read.
    """
    root = Path(path)
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"The folder {root} {what}; expected a folder that holds images.")
    wanted = None if folders is None else {folders} if isinstance(folders, str) else set(folders)
    if not recurse:
        wanted = set()
    return list(_walk(root, wanted, frozenset()))


def _walk(
    folder: Path, wanted: set[str] | None, above: frozenset[tuple[int, int]]
) -> Iterator[Path]:
    here = folder.stat()
    above = above | {(here.st_dev, here.st_ino)}
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read ({error.strerror}).") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            status = entry.stat()
            around = (status.st_dev, status.st_ino) in above
            if not around and (wanted is None or entry.name in wanted):
                yield from _walk(folder / entry.name, None, above)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122  (entries are plain strings, and many)
            yield folder / entry.name  # half the time of Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


@register
def parent_label(item: str | os.PathLike[str]) -> str:
    """The name of the folder that holds the file `item`.

    >>> parent_label("train/n01440764/fish.JPEG")
    'n01440764'
    """
    # strings: a third of the time of Path's own parts, which tells with 100,000 files
    return os.path.basename(os.path.dirname(os.fspath(item)))  # noqa: PTH119, PTH120


@register
class RegexLabeller:
    """Label an item by the first group of `pat` in it as text, in a path with forward slashes.

    The pattern is searched for; with `match` it has to fit from the beginning. Raises `DataError`
    for an item that it is not found in.

    >>> RegexLabeller(r"([a-z_]+)_\\d+\\.jpg$")(Path("images/great_pyrenees_17.jpg"))
    'great_pyrenees'
    """

    def __init__(self, pat: str | re.Pattern[str], match: bool = False) -> None:
        try:
            self.pat = re.compile(pat)
        except re.error as error:
            raise DataError(f"RegexLabeller({pat!r}): this is no pattern: {error}.") from error
        if self.pat.groups < 1:
            raise DataError(
                f"RegexLabeller({self.pat.pattern!r}) has no group; put the part that is the label "
                "in parentheses."
            )
        self.match = match

    def __call__(self, item: Any) -> str:
        text = item.as_posix() if isinstance(item, Path) else str(item)
        found = self.pat.match(text) if self.match else self.pat.search(text)
        if found is None or found[1] is None:
            raise DataError(f"The pattern {self.pat.pattern!r} is not found in {text!r}.")
        return found[1]

    def __repr__(self) -> str:
        return f"RegexLabeller({self.pat.pattern!r})"


@register
class ColReader:
    """Read from a row the columns `cols`, given by name or place; several make a list.

    A row is one of a data frame, of a CSV file (`read_csv`), a dict, a named tuple or a sequence.
    `pref` and `suff` go around the value; a `Path` as `pref` is the folder that it lies in.
    `label_delim` splits it to a list of labels, an empty cell to no label. What is no row, but a
    path or a picture, is taken as the value itself: so `dls.test_dl` takes files too.

    Raises `DataError` for a column that is not there, with the nearest name, and where `pref` or
    `suff` would go around an empty cell.

    >>> row = {"fname": "17", "tags": "sun sea"}
    >>> ColReader("fname", pref="train/", suff=".jpg")(row), ColReader("tags", label_delim=" ")(row)
    ('train/17.jpg', ['sun', 'sea'])
    """

    def __init__(
        self,
        cols: Column | Sequence[Column],
        pref: str | Path = "",
        suff: str = "",
        label_delim: str | None = None,
    ) -> None:
        self.cols = [cols] if isinstance(cols, str | int) else list(cols)
        self.pref, self.suff, self.label_delim = pref, suff, label_delim

    def __call__(self, row: Any) -> Any:
        if isinstance(row, str | os.PathLike | Image.Image) or _is_picture(row):
            return row
        values = [self._value(row, column) for column in self.cols]
        return values[0] if len(values) == 1 else values

    def _value(self, row: Any, column: Column) -> Any:
        value = _cell(row, column)
        if self.label_delim is not None:
            if isinstance(value, list | tuple):
                return list(value)
            return [] if is_missing(value) else str(value).split(self.label_delim)
        if not (self.suff or isinstance(self.pref, Path) or self.pref):
            return value
        if is_missing(value):
            raise DataError(f"The column {column!r} is empty in {row}; expected a value.")
        if isinstance(self.pref, Path):
            return self.pref / f"{value}{self.suff}"
        return f"{self.pref}{value}{self.suff}"

    def __repr__(self) -> str:
        return f"ColReader({', '.join(map(repr, self.cols))})"


def _is_picture(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 1


def _cell(row: Any, column: Column) -> Any:
    if isinstance(row, Row):
        return row[column]
    names = _names(row)
    if column in names:
        return getattr(row, str(column)) if hasattr(row, "_fields") else row[column]
    if isinstance(column, int) and not isinstance(row, Mapping):
        try:
            return row.iloc[column] if hasattr(row, "iloc") else row[column]
        except IndexError:
            raise DataError(f"There is no column {column} in {row}.") from None
    near = nearest(repr(column), map(repr, names))
    raise DataError(f"There is no column {column!r} in {row}; {near}")


def _names(row: Any) -> list[Any]:
    """The names of a row's columns; none for a plain sequence."""
    if isinstance(row, Mapping):
        return list(row)
    if hasattr(row, "iloc"):  # a pandas series
        return list(row.index)
    return list(getattr(row, "_fields", ()))
