"""The table of a fit as a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from treadle.errors import DataError
from treadle.loop.events import Callback
from treadle.run.folder import history_csv, write_text


class CSVLogger(Callback):
    """Writes the recorder's table to the CSV file `learn.path/fname`, a row after each epoch.

    Whenever the process ends, the file holds the header and all finished epochs.

    Args:
        fname: the file, relative to `learn.path`.
        append: keep the rows that the file already has and add to them.

    Raises:
        DataError: when a fit starts, if the file cannot be written, or is to be appended to and has
            other columns.

    >>> log = CSVLogger("history.csv", append=True)
    """

    order = 60
    run_after = "Recorder"
    reports = True
    on_main = True
    state_names = ("before",)

    def __init__(self, fname: str | os.PathLike[str] = "history.csv", append: bool = False) -> None:
        self.fname, self.append = fname, append

    def before_fit(self) -> None:
        self.file = self.path / self.fname
        with suppress(OSError):  # what stands in the way, writing says in a sentence
            self.file.parent.mkdir(parents=True, exist_ok=True)
        header = history_csv(self.recorder.metric_names, [])
        earlier = self.file.read_text("utf-8") if self.append and self.file.is_file() else ""
        self.before = earlier or header
        if not self.before.startswith(header):
            raise DataError(
                f"{self.file} has the columns {earlier.splitlines()[0]} and this fit "
                f"{header.strip()}; give another fname, or append=False to replace the file."
            )
        write_text(self.file, self.before)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._write()

    def after_epoch(self) -> None:
        self._write()

    def _write(self) -> None:
        table = history_csv(self.recorder.metric_names, self.recorder.rows)
        write_text(self.file, self.before + table.partition("\n")[2])
