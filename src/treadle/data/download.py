"""Fetch a public data set once and unpack it: `untar_data(URLs.IMAGENETTE_160)`."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from treadle.data.archive import SUFFIXES, Unpacked, unpack
from treadle.data.fetch import MIRROR, fetch, shown
from treadle.data.home import NoRoomError, data_home, install, scratch_folder
from treadle.data.known import KNOWN
from treadle.data.manifest import Manifest
from treadle.errors import DataError, UsageError

__all__ = ["unpacked_path", "untar_data"]


def untar_data(
    url: str,
    archive: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    c_key: str = "data",
    force_download: bool = False,
    base: str | os.PathLike[str] | None = None,
) -> Path:
    """Download the tar or zip archive at `url`, unpack it, and return the unpacked folder.

    The archive is kept in the folder `archive`; the data go to a folder in `data` that is named as
    the archive without its suffix. Left out, these are `archive/` and what `c_key` names, in
    `base` or else in `data_home()`. Where the unpacked folder is already there nothing is done and
    nothing is fetched, unless `force_download` is true. (The arguments are fastai's.)

    An interrupted download goes on where it ended at the next call, and the sizes and checksums
    that are known of the public sets are compared (`fetch` tells how). The folder appears only
    when it is complete, with a list of its files in `.treadle.json`, by which `treadle data
    verify` checks it. Of several processes one does the work and the others wait for it. When it
    fails, only the part of an interrupted download stays.

    Where the environment variable TREADLE_DATA_MIRROR is set (a folder, a `file://` or an
    `http(s)://` address), the archive of the same file name is taken from there instead, as it is:
    a mirror may hold a cut-down set.

    Raises `DownloadError` where the archive does not arrive whole, and `DataError` where it is
    damaged (it is then removed), holds anything but files and folders with relative names, or
    unpacks to more than it may.
    """
    goal = unpacked_path(url, data, c_key, base)
    if goal.is_dir() and not force_download:
        return goal
    name = _name(url)
    source = _source(url, name)
    store = Path(archive).expanduser() if archive is not None else _home(base) / "archive"
    with scratch_folder(goal) as scratch:
        if goal.is_dir() and not force_download:  # another process was faster
            return goal
        known = next((known for known in KNOWN.values() if known.url == source), None)
        path = fetch(
            source,
            store / name,
            size=known.size if known else None,
            md5=known.md5 if known else None,
            again=force_download,
        )
        unpacked = _unpack(path, scratch, source)
        Manifest(shown(url), unpacked.files).write(unpacked.folder)
        return install(unpacked.folder, goal, replace=force_download)


def unpacked_path(
    url: str,
    data: str | os.PathLike[str] | None = None,
    c_key: str = "data",
    base: str | os.PathLike[str] | None = None,
) -> Path:
    """The folder in which `untar_data` puts the archive at `url`, whether it is there or not.

    >>> unpacked_path("https://host/toy.tar.gz", data="sets").as_posix()
    'sets/toy'

    Raises `UsageError` where `url` does not name an archive.
    """
    parent = Path(data).expanduser() if data is not None else _home(base) / c_key
    name = _name(url)
    return parent / next(name.removesuffix(s) for s in SUFFIXES if name.endswith(s))


def _home(base: str | os.PathLike[str] | None) -> Path:
    return Path(base).expanduser() if base is not None else data_home()


def _name(url: str) -> str:
    """The file name of the archive at `url`."""
    name = unquote(urlsplit(shown(url)).path).rsplit("/", 1)[-1]
    if (
        not name.endswith(SUFFIXES)
        or name.startswith(".")
        or "\\" in name
        or not name.isprintable()
    ):
        raise UsageError(
            f"{shown(url)!r} does not name an archive; expected an address that ends in one of "
            f"{', '.join(SUFFIXES)}."
        )
    return name


def _source(url: str, name: str) -> str:
    """`url`, or the address of the same file at the mirror that the environment names."""
    if mirror := os.environ.get(MIRROR):
        base = mirror if "://" in mirror else Path(mirror).expanduser().resolve().as_uri()
        return f"{base.rstrip('/')}/{quote(name)}"
    return url


def _unpack(archive: Path, folder: Path, source: str) -> Unpacked:
    """Unpack, and remove an archive that is no good."""
    try:
        return unpack(archive, folder)
    except NoRoomError:
        raise
    except DataError as error:
        archive.unlink(missing_ok=True)
        error.add_note(f"It came from {shown(source)} and was removed: call again to fetch")
        raise
