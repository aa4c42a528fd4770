"""The folder of a comparison: each run that is done is a file there, so that a later call skips it.

    config.json             what is compared, and what each row is
    runs/NAME-SEED.json     one run
    comparison.json         all of them, as far as it has come

Files are written whole or not at all, so a comparison may be ended at any moment.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from treadle.errors import DataError, UsageError
from treadle.run import write_json
from treadle.study.comparison import Comparison, Run


class KeptRuns:
    """The runs of a comparison in `folder`; with None they are not kept.

    `settings` is what all rows share, and `rows` describes each. A folder that holds a comparison
    with other settings, or a row of the same name that is something else, is refused with a
    UsageError; further rows and seeds may be added to it.
    """

    def __init__(
        self, folder: Path | None, settings: Mapping[str, Any], rows: Mapping[str, str]
    ) -> None:
        self.folder = folder
        if folder is None:
            return
        old = _config_of(folder) or {"settings": _plain(settings), "rows": {}}
        _check_same(folder, "settings", old["settings"], _plain(settings), whole=True)
        _check_same(folder, "rows", old["rows"], dict(rows), whole=False)
        _make(folder)
        config = {"settings": _plain(settings), "rows": {**old["rows"], **rows}}
        write_json(folder / "config.json", config)
        _make(folder / "runs")

    def get(self, row: str, seed: int) -> Run | None:
        """The run, if it is done."""
        if self.folder is None or not (file := self._file(row, seed)).is_file():
            return None
        plain = _read(file)
        try:
            return Run.from_dict(plain)
        except TypeError as error:
            raise DataError(f"{file} is not the record of a run ({error}); delete it.") from error

    def put(self, row: str, run: Run) -> None:
        """Keep a run."""
        if self.folder is not None:
            write_json(self._file(row, run.seed), asdict(run))

    def put_comparison(self, comparison: Comparison) -> None:
        """Keep the whole, in place of what the folder had of it."""
        if self.folder is not None:
            write_json(self.folder / "comparison.json", comparison.to_dict())

    def _file(self, row: str, seed: int) -> Path:
        assert self.folder is not None
        return self.folder / "runs" / f"{slug(row)}-{seed}.json"


def slug(name: str) -> str:
    """`name` as a part of a file name; other names get other ones.

    >>> slug("adam"), slug("adam: lr=1/3")
    ('adam', 'adam-lr=1-3-1696f608')
    """
    plain = re.sub(r"[^A-Za-z0-9_.=+]+", "-", name).strip("-.")[:60]
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}".lstrip("-")


def _plain(settings: Mapping[str, Any]) -> Any:
    """As the settings come back from a file."""
    return json.loads(json.dumps(settings, default=str))


def _config_of(folder: Path) -> Any:
    """What the folder's config.json says, None where the folder is new or empty."""
    file = folder / "config.json"
    config = _read(file) if file.is_file() else None
    if config is None and folder.is_dir():
        taken = [path for path in folder.iterdir() if not path.name.startswith(".")]
    else:
        taken = [] if config is None or {"settings", "rows"} <= config.keys() else [file]
    if taken:
        raise UsageError(
            f"the folder {folder} holds something else than a comparison ({taken[0].name}); give a "
            "new or an empty one."
        )
    return config


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); delete it, or its folder.") from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the folder {folder} cannot be made ({error.strerror}); choose another place."
        ) from error


def _check_same(
    folder: Path, what: str, old: Mapping[str, Any], new: Mapping[str, Any], whole: bool
) -> None:
    missing = object()
    for name in {**old, **new} if whole else {k: None for k in new if k in old}:
        before, now = old.get(name, missing), new.get(name, missing)
        if before != now:
            said = ["nothing" if value is missing else repr(value) for value in (before, now)]
            raise UsageError(
                f"the folder {folder} holds a comparison in which {name} is {said[0]}, not "
                f"{said[1]}; give another folder, or the same {what}."
            )
