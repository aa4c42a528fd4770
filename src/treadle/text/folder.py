"""Text where it lies: a file, a training and a validation file, a folder of files or of classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from treadle.errors import DataError
from treadle.text.dataloaders import TextDataLoaders
from treadle.text.files import text_of

__all__ = ["text_dataloaders", "text_files"]

_VALID = ("valid", "val", "validation", "test")
_SHARE = 0.1  # of a single text, its end, validates


def text_dataloaders(path: str | os.PathLike[str], is_lm: bool, **kwargs: Any) -> TextDataLoaders:
    """Loaders of the .txt files at `path`, in UTF-8.

    For a language model `path` is a file, whose last tenth validates; a folder with `train.txt` and
    `valid.txt` (or `val`, `validation`, `test`); or a folder of files, as for a classifier but
    without need of classes. For a classifier it is a folder with `train/CLASS/*` and
    `valid|val|validation|test/CLASS/*`, or with `CLASS/*`, of which a random fifth validates.

    Keywords are those of `TextDataLoaders`.

    Raises:
        DataError: if there is no such text.
    """
    path = Path(path)
    if path.is_file() and is_lm:
        train, valid = _halves(text_of(path))
        kwargs["path"] = path.parent
        return TextDataLoaders.from_lists([train], valid_texts=[valid], **kwargs)
    if not path.is_dir():
        kind = "a .txt file, or a folder of them" if is_lm else "a folder with CLASS/*.txt"
        raise DataError(f"there is no folder {path}; give {kind}.")
    pair: Any = _pair(path) if is_lm else None
    if pair is not None:
        return TextDataLoaders.from_lists(pair[:1], valid_texts=pair[1:], path=path, **kwargs)
    valid = next((name for name in _VALID if (path / name).is_dir()), "")
    split = bool(valid) and (path / "train").is_dir()
    return TextDataLoaders.from_folder(
        path,
        valid=valid or "valid",
        valid_pct=None if split else 0.2,
        is_lm=is_lm,
        **kwargs,
    )


def text_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that `text_dataloaders` may read, sorted."""
    path = Path(path)
    return [path] if path.is_file() else sorted(path.rglob("*.txt"))


def _halves(text: str) -> tuple[str, str]:
    """A text cut between two lines, or else two words, near the end."""
    lines = text.strip().split("\n")
    mark = "\n" if len(lines) >= 2 / _SHARE else " "
    parts = text.strip().split(mark)
    n = max(round(len(parts) * _SHARE), 1)
    return mark.join(parts[:-n]), mark.join(parts[-n:])


def _pair(path: Path) -> list[Path] | None:
    train = path / "train.txt"
    valid = next((f for name in _VALID if (f := path / f"{name}.txt").is_file()), None)
    return [train, valid] if valid is not None and train.is_file() else None
