"""`treadle data`: the public data sets, fetched, found and verified."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from treadle.errors import DataError

DIGITS = "digits"  # no download: scikit-learn carries them
Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def data() -> App:
    """The verbs of `treadle data`."""
    verbs = App(name="data", help="Public data sets: list, get, path, verify.")
    verbs.command(listing, name="list")
    verbs.command(get)
    verbs.command(path)
    verbs.command(verify)
    return verbs


def listing(*, debug: Flag = False) -> None:
    """List the public data sets: the size of the download, whether it is here, what it is.

    Args:
        debug: Show the full traceback of an error.
    """
    from treadle.data import data_home
    from treadle.data.home import megabytes
    from treadle.data.known import KNOWN

    rows = [("name", "download", "here", "what")]
    rows.append((DIGITS, "none", here(DIGITS), "scikit-learn's handwritten digits, 8 x 8 px"))
    rows += [(x.name, megabytes(x.size), here(x.name), x.about) for x in KNOWN.values()]
    for name, size, present, about in rows:
        print(f"{name:<15} {size:>9}  {present:<4}  {about}")
    print(f"They are kept in {data_home() / 'data'}; treadle data get NAME brings one there.")


def get(name: str, /, *, to: Path | None = None, force: Flag = False, debug: Flag = False) -> None:
    """Download a data set and unpack it, unless it is here; print its folder.

    An interrupted download goes on where it ended.

    Args:
        name: A name that `treadle data list` shows, or the address of a tar or zip archive.
        to: The folder in which its folder appears [default: the data home]
        force: Fetch it anew, and replace what is here.
        debug: Show the full traceback of an error.
    """
    from treadle.data import digits_path, untar_data

    if name == DIGITS:
        print(digits_path(None if to is None else to / DIGITS))
    else:
        print(untar_data(address(name), data=to, force_download=force))


def path(name: str, /, *, debug: Flag = False) -> None:
    """Print the folder of a data set that is here, and nothing else.

    Args:
        name: A name that `treadle data list` shows, or the address that it was fetched from.
        debug: Show the full traceback of an error.
    """
    folder = folder_of(name)
    if not folder.is_dir():
        raise DataError(
            f"{name} is not here: there is no {folder}. `treadle data get {name}` fetches it."
        )
    print(folder)


def verify(name: str, /, *, debug: Flag = False) -> None:
    """Compare each file of an unpacked data set with what was unpacked.

    Files that are missing, extra or changed are listed, and the exit status is then 2.

    Args:
        name: A name that `treadle data list` shows, an address, or a folder.
        debug: Show the full traceback of an error.
    """
    from treadle.data.home import megabytes
    from treadle.data.manifest import verify as compare

    folder = Path(name) if Path(name).is_dir() else folder_of(name)
    manifest, differences = compare(folder)
    if not any(differences):
        count = len(manifest.files)
        print(f"{folder}: {count} files, {megabytes(manifest.size)}, all as unpacked")
        return
    for kind, names in differences._asdict().items():
        for file in names:
            print(f"{kind:<8} {file if file.isprintable() else ascii(file)}")
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in differences._asdict().items())
    raise DataError(
        f"{folder} is not as it was unpacked from {manifest.source}: {counts}. "
        "`treadle data get --force` fetches it anew."
    )


def address(name: str) -> str:
    """The address of a data set that is given by its name or its address."""
    from treadle.data.known import known_data

    return name if "://" in name else known_data(name).url


def folder_of(name: str) -> Path:
    """Where the data home has a data set, whether it is there or not."""
    from treadle.data import data_home
    from treadle.data.download import unpacked_path

    return data_home() / "data" / DIGITS if name == DIGITS else unpacked_path(address(name))


def here(name: str) -> str:
    """`yes` for a data set that is unpacked in the data home."""
    return "yes" if folder_of(name).is_dir() else "-"
