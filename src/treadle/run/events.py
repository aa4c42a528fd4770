"""`events.jsonl` in a run folder: what happened, and when, a line of JSON each.

Lines are only ever added, each in one write, so that a kill can cut the last one at most. Such a
half line is not read, and removed before the next one is added.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from treadle.errors import DataError
from treadle.run.folder import sentence_for, to_plain
from treadle.world import world

EVENTS = "events.jsonl"


class EventLog:
    """Adds lines to the `events.jsonl` of a run folder. One process at a time may: see
    `sole_writer`. Of several that train together only the main one does.

    Raises DataError if the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     EventLog(folder).append("epoch", updates=23, row={"valid_loss": 0.5})
    ...     [(event["event"], event["updates"]) for event in read_events(folder)]
    [('epoch', 23)]
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / EVENTS
        self.writes = world().is_main
        if not self.writes:
            return
        with sentence_for("write", self.path), self._opened() as fd:
            _drop_half_line(fd)

    def append(self, event: str, **facts: Any) -> None:
        """Add a line: the time in UTC, the event's name, and `facts`, as `write_json` has them."""
        if not self.writes:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        plain = to_plain({"time": now, "event": event, **facts}, event)
        line = (json.dumps(plain, separators=(",", ":")) + "\n").encode()
        with sentence_for("write", self.path), self._opened() as fd:
            end = os.fstat(fd).st_size
            if os.write(fd, line) < len(line):
                os.ftruncate(fd, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            yield fd
        finally:
            os.close(fd)


def read_events(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The events of a run, oldest first; empty if it has none.

    Raises DataError, naming the line, if the file is damaged; a half line at its end is none.
    """
    path = Path(folder) / EVENTS
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    return [_event(path, number, line) for number, line in enumerate(lines, 1)]


def _event(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
        if isinstance(event, Mapping) and isinstance(event["event"], str):
            return {**event, "time": str(event["time"])}
    except (ValueError, KeyError, RecursionError):
        pass
    raise DataError(f"{path}, line {number}, is no event; restore the file, or remove the line.")


def _drop_half_line(fd: int) -> None:
    end = os.lseek(fd, 0, os.SEEK_END)
    while end:
        start = max(end - 4096, 0)
        os.lseek(fd, start, os.SEEK_SET)
        found = os.read(fd, end - start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    os.ftruncate(fd, end)
