"""Fetch a public data set once and unpack it: `untar_data(URLs.IMAGENETTE_160)`."""

from __future__ import annotations

import http.client
import os
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from treadle.data.archive import unpack
from treadle.data.home import data_home, install, scratch_folder
from treadle.errors import DataError, DownloadError, UsageError

__all__ = ["URLs", "fetch", "untar_data"]

_SCHEMES = ("http", "https", "file")
_SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tar")
_TIMEOUT = 30.0  # seconds that the other side may be silent
_CHUNK = 1 << 18
_MIRROR = "TREADLE_DATA_MIRROR"


class URLs:
    """Public data sets that fast.ai serves (https://github.com/fastai/imagenette).

    Imagenette: ten easily told classes of ImageNet; Imagewoof: ten breeds of dogs. `_160` and
    `_320` name the length of the shortest side in pixels; without it the files are full size.
    """

    _BASE = "https://s3.amazonaws.com/fast-ai-imageclas/"
    IMAGENETTE = _BASE + "imagenette2.tgz"
    IMAGENETTE_160 = _BASE + "imagenette2-160.tgz"
    IMAGENETTE_320 = _BASE + "imagenette2-320.tgz"
    IMAGEWOOF = _BASE + "imagewoof2.tgz"
    IMAGEWOOF_160 = _BASE + "imagewoof2-160.tgz"
    IMAGEWOOF_320 = _BASE + "imagewoof2-320.tgz"


def untar_data(
    url: str, data: str | os.PathLike[str] | None = None, force_download: bool = False
) -> Path:
    """Download the tar archive at `url`, unpack it, and return the unpacked folder.

    The archive is kept in `archive/` of `data_home()`; the folder is named as the archive without
    its suffix, in `data` if that is given, else in `data/` of `data_home()`. Where the folder is
    already there nothing is done and nothing is fetched, unless `force_download` is true.

    Where the environment variable TREADLE_DATA_MIRROR is set (a folder, a `file://` or an
    `http(s)://` address), the archive of the same file name is taken from there instead.

    Raises `DownloadError` where the archive does not arrive whole, and `DataError` where it is
    damaged (it is then removed) or holds anything but files and folders with relative names.
    """
    name = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    stem = _stem(name, url)
    goal = (Path(data).expanduser() if data is not None else data_home() / "data") / stem
    if goal.is_dir() and not force_download:
        return goal
    archive = data_home() / "archive" / name
    if force_download or not archive.is_file():
        fetch(_source(url, name), archive)
    with scratch_folder(goal) as scratch:
        try:
            folder = unpack(archive, scratch)
        except DataError as error:
            archive.unlink(missing_ok=True)
            error.add_note(
                f"It came from {_source(url, name)} and was removed: call again to fetch"
            )
            raise
        return install(folder, goal, replace=force_download)


def fetch(url: str, goal: Path) -> Path:
    """Copy the body at `url` (http, https or file) to the file `goal`, whole or not at all.

    Raises `DownloadError` naming `url`: on a refused or silent connection, on an HTTP error
    status, and on a body shorter than its Content-Length.
    """
    goal.parent.mkdir(parents=True, exist_ok=True)
    part = goal.parent / f".{goal.name}.{uuid.uuid4().hex}.part"
    try:
        with _opened(url) as response, part.open("xb") as file:
            expected = response.headers.get("Content-Length")
            total = int(expected) if expected and expected.isdigit() else None
            got = _copy(response, file, goal.name, total)
        if total is not None and got != total:
            raise DownloadError(
                f"{url} was cut off: got {got} of {total} bytes. Call again to fetch it anew."
            )
        part.replace(goal)
    finally:
        part.unlink(missing_ok=True)
    return goal


def _stem(name: str, url: str) -> str:
    for suffix in _SUFFIXES:
        if name.endswith(suffix) and name != suffix:
            return name.removesuffix(suffix)
    raise UsageError(
        f"{url!r} does not name a tar archive; expected an address that ends in one of "
        f"{', '.join(_SUFFIXES)}."
    )


def _source(url: str, name: str) -> str:
    """`url`, or the address of the same file at the mirror that the environment names."""
    if mirror := os.environ.get(_MIRROR):
        base = mirror if "://" in mirror else Path(mirror).expanduser().resolve().as_uri()
        url = f"{base.rstrip('/')}/{name}"
    if urlsplit(url).scheme not in _SCHEMES:
        raise UsageError(f"{url!r} has a scheme that is not one of {', '.join(_SCHEMES)}.")
    return url


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    """The open response at `url`; whatever the network does wrong becomes a DownloadError."""
    mend = f"Check the address and the connection, or set {_MIRROR} to a folder that has the file."
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:  # noqa: S310  (_source)
            yield response
    except urllib.error.HTTPError as error:
        with error:
            raise DownloadError(f"{url} answered {error.code} {error.reason}. {mend}") from error
    except urllib.error.URLError as error:
        raise DownloadError(f"{url} could not be reached ({error.reason}). {mend}") from error
    except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise DownloadError(f"{url} stopped answering ({reason}). {mend}") from error


def _copy(response: IO[bytes], file: IO[bytes], name: str, total: int | None) -> int:
    """Copy, showing a bar on a terminal and one line at the end elsewhere; returns the bytes."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
    from rich.progress import TimeRemainingColumn as Remaining

    console = Console(stderr=True)
    start, got = time.perf_counter(), 0
    if console.is_terminal:
        columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, Remaining(), console=console) as bar:
            task = bar.add_task(name, total=total)
            while chunk := response.read(_CHUNK):
                got += file.write(chunk)
                bar.update(task, completed=got)
        return got
    shutil.copyfileobj(response, file, _CHUNK)
    got = file.tell()
    seconds = time.perf_counter() - start
    print(f"Downloaded {name}: {got / 1e6:.1f} MB in {seconds:.1f} s", file=sys.stderr)
    return got
