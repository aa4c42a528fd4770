"""`treadle info`: all that is known of one run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from treadle.cli.running import shown
from treadle.cli.runs import age, megabytes
from treadle.cli.terminal import print_table
from treadle.errors import printable

if TYPE_CHECKING:
    from treadle.run.status import RunStatus

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
_LAST_ROWS = 5


def info(run: Path, /, *, debug: Flag = False) -> None:
    """Tell of a run: its state, settings and machine, its checkpoints (every byte of them is
    checked), and its last epochs.

    Args:
        run: The run folder, as runs/DATE-TIME-NAME.
        debug: Show the full traceback of an error.
    """
    from treadle.run.status import folder_size, read_status

    status = read_status(run)
    config = dict(status.config)
    environment = config.pop("environment", {})
    section("run", [("folder", f"{run} ({megabytes(folder_size(run))})"), *state_of(status)])
    section("settings", shown(config).items())
    section("machine", environment.items() if isinstance(environment, dict) else ())
    section("checkpoints", checkpoints_of(run))
    if status.rows:
        print_table(last_rows(status))


def section(title: str, rows: Iterable[tuple[str, object]]) -> None:
    """A title and lines of names and values; nothing if there are none."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(f"  {printable(str(name))}", "dim"), Text(printable(said(value))))
    if table.row_count:
        print(title)
        print_table(table)


def said(value: object) -> str:
    """A setting as text: lists without their brackets, the long ones cut."""
    if isinstance(value, list):
        more = f", ... ({len(value)} in all)" if len(value) > 12 else ""
        return ", ".join(map(str, value[:12])) + more
    return "none" if value is None else str(value)


def state_of(status: RunStatus) -> Iterator[tuple[str, str]]:
    """The state, and since when and why."""
    state: str = status.state
    if status.holder is not None:
        state += f": process {status.holder.pid} on {status.holder.host}"
    yield "state", state + (f": {status.why}" if status.why else "")
    if status.started:
        yield "started", f"{status.started[:19].replace('T', ' ')} UTC ({age(status.started)} ago)"
    yield "epochs", f"{len(status.rows)} of {status.config.get('epochs', 'an unknown number')}"
    if status.state in ("interrupted", "failed"):
        yield "go on", f"treadle resume {status.folder}"


def checkpoints_of(run: Path) -> Iterator[tuple[str, str]]:
    """Each checkpoint with its size, or what is wrong with it."""
    from treadle.errors import DataError
    from treadle.run.checkpoint import checkpoints, verify_checkpoint

    for path in checkpoints(run / "checkpoints"):
        try:
            found = verify_checkpoint(path)
        except DataError as error:
            yield path.name, f"damaged: {error}"
        else:
            size = sum(stored.size for stored in found.files().values())
            yield path.name, f"whole, {megabytes(size)}, {age(found.created)} ago"


def last_rows(status: RunStatus) -> Any:
    """The table's last epochs."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in status.rows[0]:
        table.add_column(Text(printable(name)), justify="right")
    for row in status.rows[-_LAST_ROWS:]:
        table.add_row(*(Text(printable(short(name, row[name]))) for name in row))
    return table


def short(name: str, text: str) -> str:
    """A cell with six digits after the point, the seconds with one."""
    try:
        value = float(text)
    except ValueError:
        return text
    if name == "epoch":
        return text
    return f"{value:.1f} s" if name == "time" else f"{value:.6f}"
