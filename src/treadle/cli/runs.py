"""`treadle runs`: what lies under runs/, a line each."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from treadle.cli.terminal import print_table
from treadle.errors import DataError, printable

if TYPE_CHECKING:
    from treadle.run.status import RunStatus

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
_STYLES = {"running": "bold cyan", "failed": "red", "interrupted": "yellow"}


def runs(root: Path = Path("runs"), /, *, debug: Flag = False) -> None:
    """List the runs, the newest first: state, processes where there were several, epochs done and
    planned, best and last value of the metric, size.

    Args:
        root: The folder that holds the run folders.
        debug: Show the full traceback of an error.
    """
    from rich.table import Table
    from rich.text import Text

    if not root.is_dir():
        raise DataError(f"there is no folder {root}; treadle train makes runs, in runs/.")
    folders = [p for p in root.iterdir() if (p / "config.json").is_file()]
    if not folders:
        print(f"There are no runs in {printable(str(root))}; treadle train makes one.")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("run", overflow="fold")
    for name in ("age", "state"):
        table.add_column(name, no_wrap=True)
    folders.sort(key=lambda p: (p / "config.json").stat().st_mtime, reverse=True)
    rows = [row_of(folder) for folder in folders]
    several = any(processes for _, _, processes, *_ in rows)
    for name in (*(["procs"] if several else []), "epochs", "best", "last", "size"):
        table.add_column(name, no_wrap=True, justify="right")
    for folder, (state, begun, processes, *numbers) in zip(folders, rows, strict=True):
        told = Text(state, _STYLES.get(state.split()[0], ""))
        cells = [*([processes] if several else []), *numbers]
        table.add_row(Text(printable(folder.name)), begun, told, *map(Text, cells))
    print_table(table)


def row_of(folder: Path) -> list[str]:
    """State, age, processes (empty for one), epochs, best, last and size."""
    from treadle.run.status import folder_size, read_status

    size = megabytes(folder_size(folder))
    try:
        status = read_status(folder)
    except DataError:
        return ["damaged", "", "", "", "", "", size]
    pid = f" {status.holder.pid}" if status.holder else ""
    processes = printable(str(status.config.get("processes", 1)))
    epochs = f"{len(status.rows)}/{printable(str(status.config.get('epochs', '?')))}"
    several = processes if processes != "1" else ""
    return [status.state + pid, age(status.started), several, epochs, *best_and_last(status), size]


def best_and_last(status: RunStatus) -> tuple[str, str]:
    """The two values of the metric, as text."""
    from treadle.callbacks.tracker import natural_comp

    values = status.values()
    if not values:
        return "", ""
    better = natural_comp(status.metric)
    best = values[0]
    for value in values:
        best = value if better(value, best) else best
    return f"{best:.4g}", f"{values[-1]:.4g}"


def age(time: str) -> str:
    """How long ago a time in ISO 8601 is, in its largest unit; empty if it is none.

    >>> age("long ago")
    ''
    """
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    except (ValueError, TypeError):
        return ""
    for unit, length in (("d", 86400), ("h", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0) / 60:.0f} min"


def megabytes(size: int) -> str:
    """Bytes as a person reads them.

    >>> megabytes(900), megabytes(93_000_000), megabytes(12_400_000_000)
    ('0.0 MB', '93 MB', '12.4 GB')
    """
    if size >= 1e10:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size < 1e7 else f"{size / 1e6:.0f} MB"
