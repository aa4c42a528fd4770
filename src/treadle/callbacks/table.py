"""The table that a fit prints: a header, then one aligned row an epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from treadle.plots import in_short

Row = Sequence[Any]


def format_cell(name: str, value: Any) -> str:
    """How the column `name` shows a value: counts as they are, times as mm:ss, numbers with six
    decimals, what is missing as a dash.

    >>> format_cell("accuracy", 0.5), format_cell("time", 75.2), format_cell("valid_loss", None)
    ('0.500000', '01:15', '–')
    """
    if value is None:
        return "–"
    if name == "time":
        return format_time(value)
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def format_time(seconds: float) -> str:
    """Seconds as mm:ss, or h:mm:ss from an hour on.

    >>> format_time(3725)
    '1:02:05'
    """
    minutes, sec = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{sec:02}" if hours else f"{minutes:02}:{sec:02}"


class Table:
    """Writes rows as aligned lines: first the names of the columns, then values.

    >>> table = Table(print)
    >>> table(["epoch", "train_loss", "time"])
    epoch  train_loss   time
    >>> table([0, 0.25, 7.0])
        0    0.250000  00:07
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write = write
        self.names: list[str] = []

    def __call__(self, row: Row) -> None:
        if row and all(isinstance(value, str) for value in row):
            self.names = [in_short(name, most=40) for name in row]
            cells = self.names
        else:
            cells = [format_cell(*pair) for pair in zip(self.names, row, strict=True)]
        self.write("  ".join(map(str.rjust, cells, map(self._width, self.names))))

    @staticmethod
    def _width(name: str) -> int:
        return len(name) if name == "epoch" else max(len(name), 5 if name == "time" else 8)


def no_table(row: Row) -> None:
    """A logger that writes nothing; what `no_logging` puts in place."""
