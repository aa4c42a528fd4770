"""Runs whose processes torchrun starts again: which run was theirs.

After a failure `torchrun --max-restarts=3 ...` starts all processes anew, with the same command
line. Each run notes who launched it, so that the new processes find it.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from treadle.errors import DataError
from treadle.run.events import read_events
from treadle.run.lock import process_start


def launcher() -> str:
    """The torchrun that started this process, which stays the same when it starts the process
    again; empty if none did.

    >>> launcher()
    ''
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    parent = os.getppid()
    return f"{platform.node()} {parent} {process_start(parent) or ''}"


def launched_by(folder: Path) -> str:
    """Who launched the processes that were last at work on the run in `folder`, as `launcher`
    says; empty if nobody did, or it cannot be read."""
    try:
        begun = [e for e in read_events(folder) if e["event"] in ("started", "resumed")]
    except DataError:
        return ""
    return str(begun[-1].get("launcher", "")) if begun else ""


def begun_here(
    out: str | os.PathLike[str] | None = None, root: str | os.PathLike[str] = "runs"
) -> Path | None:
    """The folder of the run that this process's launcher has begun: `out`, or one in `root`. None
    if there is none yet."""
    mine = launcher()
    if not mine:
        return None
    places = sorted(Path(root).glob("*/"), reverse=True) if out is None else [Path(out)]
    return next((place for place in places if launched_by(place) == mine), None)
