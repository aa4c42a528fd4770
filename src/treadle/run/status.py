"""How it stands with a run, read from its folder; nothing in it is changed."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from treadle.errors import DataError
from treadle.run.events import read_events
from treadle.run.lock import Holder, read_holder

State = Literal["running", "finished", "interrupted", "failed", "unknown"]

# What the last of these events says of a run that nobody is at work on.
_STATES: dict[str, State] = {
    "started": "interrupted",
    "resumed": "interrupted",
    "left": "interrupted",
    "error": "failed",
    "finished": "finished",
}


@dataclass(frozen=True)
class RunStatus:
    """How it stands with a run.

    Attributes:
        folder: where it is.
        state: "running" in another process (or held by one of another machine, which cannot be
            seen from here), "finished", "failed" by an error, "interrupted" by anything else, also
            by a kill; "unknown" where it has no events.
        why: what ended it early, if that could still be said.
        holder: the process that is at work on it.
        started: when it began, UTC, ISO 8601; empty if unknown.
        config: what `config.json` holds.
        rows: the table: for each epoch the cells by column, as `history.csv` has them.
    """

    folder: Path
    state: State
    why: str
    holder: Holder | None
    started: str
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, str]]

    @property
    def metric(self) -> str:
        """The column to judge it by: the first metric, or the validation loss; "" without rows."""
        names = list(self.rows[0]) if self.rows else []
        columns = [name for name in names if name not in ("epoch", "train_loss", "time")]
        return (columns[1:2] or columns or [""])[0]

    def values(self) -> list[float]:
        """That column, as far as it holds numbers."""
        return [v for row in self.rows if (v := _number(row.get(self.metric))) is not None]


def read_status(folder: str | os.PathLike[str]) -> RunStatus:
    """How it stands with the run in `folder`. Raises DataError if a file of it is damaged."""
    folder = Path(folder)
    events = read_events(folder)
    last = next((e for e in reversed(events) if e["event"] in _STATES), None)
    holder = read_holder(folder)
    mine = holder is not None and holder.is_here() and holder.pid == os.getpid()
    at_work = holder is not None and not mine and (holder.is_alive() or not holder.is_here())
    ended = _STATES[last["event"]] if last else "unknown"
    return RunStatus(
        folder=folder,
        state="running" if at_work else ended,
        why=_why(last) if last and not at_work else "",
        holder=holder if at_work else None,
        started=events[0]["time"] if events else "",
        config=read_json(folder / "config.json"),
        rows=_read_history(folder / "history.csv"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run. Raises DataError if there is none."""
    try:
        plain = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"there is no {path.name} in {path.parent}; give the folder of a run, such as "
            "runs/DATE-TIME-NAME."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); restore it.") from error
    if not isinstance(plain, dict):
        raise DataError(f"{path} is damaged (it holds no object); restore it.")
    return plain


def folder_size(folder: str | os.PathLike[str]) -> int:
    """The bytes of all files below `folder`; what goes away meanwhile does not count."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += Path(place, name).lstat().st_size
    return size


def _why(last: Mapping[str, Any]) -> str:
    if last["event"] in ("started", "resumed"):
        return "its process was killed"
    return str(last.get("reason") or last.get("error") or "")


def _read_history(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
