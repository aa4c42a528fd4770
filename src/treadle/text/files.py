"""Texts in files, and what is no text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from treadle.data.blocks import is_missing
from treadle.errors import DataError

__all__ = ["get_text_files", "text_of"]


def get_text_files(
    path: str | os.PathLike[str],
    recurse: bool = True,
    folders: Sequence[str] | None = None,
) -> list[Path]:
    """The files under `path` whose names end in .txt, sorted.

    `recurse=False` stays in `path` itself. `folders` names the folders directly in `path` that are
    entered; None enters all. Names that begin with a dot are skipped.

    Raises `DataError` where `path` or one of `folders` is no folder, and where there is no file.
    """
    root = Path(path)
    roots = [root] if folders is None else [root / folder for folder in folders]
    for folder in roots:
        if not folder.is_dir():
            raise DataError(f"There is no folder {folder}; expected one that holds .txt files.")
    found = [file for r in roots for file in (r.rglob("*") if recurse else r.iterdir())]
    files = sorted(
        file
        for file in found
        if file.suffix.lower() == ".txt"
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
        and file.is_file()
    )
    if not files:
        named = f" in its folders {', '.join(folders)}" if folders else ""
        raise DataError(f"There are no .txt files under {root}{named}; expected one at least.")
    return files


def text_of(value: Any, errors: str = "strict") -> str:
    """A str as it is, or the text of the file that a `Path` names, which is UTF-8.

    Raises `DataError`, with the file and the place of the byte, for bytes that are not UTF-8,
    unless `errors` is "replace"; they become U+FFFD then. What is no text has an error too: a
    missing cell of a table, another type, a zero character, half a surrogate pair.

    >>> text_of("as it is")
    'as it is'
    """
    if isinstance(value, os.PathLike):
        text, where = _read(Path(value), errors), f"The file {os.fspath(value)}"
    elif isinstance(value, str):
        text, where = value, "A text"
    else:
        raise DataError(_no_text(value))
    if (at := text.find("\0")) >= 0:
        raise DataError(
            f"{where} has a zero character (at {at}), so it is no text but binary data."
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} has half a character (at {error.start}), as wrongly decoded bytes have; read "
            "it again as UTF-8."
        ) from error
    return text


def _read(path: Path, errors: str) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"The file {path} cannot be read ({error.strerror}).") from error
    try:
        text = data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise DataError(
            f"The file {path} is not UTF-8: byte {error.start} (0x{data[error.start]:02x}), "
            f"{error.reason}. Convert the file, or give errors='replace' for U+FFFD in such places."
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _no_text(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{value[:20]!r} are bytes; decode them to a str, or give a Path to the file."
    if not isinstance(value, list | tuple | dict) and is_missing(value):
        return f"The text is missing ({value!r}). Leave out what has none, or fill it with ''."
    return (
        f"{str(value)[:60]!r} is a {type(value).__name__}; expected text as a str, or a Path to a "
        "file of it."
    )
