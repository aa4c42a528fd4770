"""The live bar and the growing table: in a terminal, in a notebook, and in plain text elsewhere."""

from __future__ import annotations

import html
import time
from typing import Any, Protocol

from treadle.callbacks.table import Row, Table, format_cell, no_table
from treadle.loop.events import Callback
from treadle.loop.late import LateNumbers
from treadle.plots import notebook_shell

REFRESH_S = 0.25  # a bar moves at most this often


class Display(Protocol):
    """Where rows and a bar are shown; the latter where it is `live`."""

    live: bool

    def row(self, row: Row) -> None:
        """Add a row to the table; the first one holds the names of the columns."""

    def bar(self, done: int, total: int, text: str) -> None:
        """Show how far the current pass has come."""

    def close(self) -> None:
        """Leave the table, take the bar away."""


class ProgressCallback(Callback):
    """A row of the table after each epoch and, where somebody looks on, a bar in between.

    On every learner by default; `learn.no_bar()` fits without it, `learn.no_logging()` silently.
    """

    order = 60
    run_before = "Recorder"  # whose header it shows
    reports = True
    on_main = True

    display: Display | None = None
    average: Any  # of the loss, without the correction for its start

    def before_fit(self) -> None:
        self.display = make_display()
        self.run_train = self.run_valid = self.display.live  # else there is nothing to show
        self.scope.callback(self._close)
        self.shown, self.loss_shown, self.late = 0.0, "", LateNumbers()
        self.average, self.followed = 0.0, 0
        self.beta = getattr(getattr(self.learn, "recorder", None), "beta", 0.98)
        if self.learn.logger is not no_table:
            self.scope.callback(setattr, self.learn, "logger", self.learn.logger)
            self.learn.logger = self.display.row

    def after_step(self) -> None:
        # The smoothed loss as the Recorder has it; but it stays on the device, and nobody waits.
        loss = self.loss if self.learn.window is None else self.learn.window.loss
        self.average = self.average * self.beta + loss.detach() * (1 - self.beta)
        self.followed += 1

    def after_batch(self) -> None:
        if self.display is not None and time.perf_counter() - self.shown >= REFRESH_S:
            self.shown = time.perf_counter()
            self._show(self.display)

    def _show(self, display: Display) -> None:
        if self.training and self.followed:
            self.late.send(self.average / (1 - self.beta**self.followed))
        for loss in self.late.arrived():
            self.loss_shown = f"  loss {loss:.4f}"
        phase = f"train{self.loss_shown}" if self.training else "valid"
        text = f"epoch {self.epoch + 1}/{self.n_epoch}  {phase}"
        display.bar(self.iter + 1, self.n_iter, text)

    def _close(self) -> None:
        if self.display is not None:
            self.display.close()
            self.display = None


def make_display() -> Display:
    """The display that suits where this process writes to."""
    if notebook_shell() is not None:
        return NotebookDisplay()
    from rich.console import Console

    console = Console()
    return TerminalDisplay(console) if console.is_terminal else PlainDisplay()


class PlainDisplay:
    """Lines only: for files, pipes and logs."""

    live = False

    def __init__(self) -> None:
        self.row = Table(lambda line: print(line, flush=True))

    def bar(self, done: int, total: int, text: str) -> None:
        """Nothing: a bar in a log is noise."""

    def close(self) -> None:
        """Nothing to take away."""


class TerminalDisplay:
    """Lines, and below them a bar that goes away when the fit ends."""

    live = True

    def __init__(self, console: Any) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            auto_refresh=False,
        )
        self.row = Table(self._line)
        self.task: Any = None
        self.done = 0
        self.progress.start()

    def _line(self, line: str) -> None:
        self.progress.console.print(line, highlight=False, markup=False)

    def bar(self, done: int, total: int, text: str) -> None:
        """Move the bar; a pass that starts over gets a fresh estimate of its time."""
        if self.task is None or done < self.done:
            if self.task is not None:
                self.progress.remove_task(self.task)
            self.task = self.progress.add_task(text, total=total)
        self.done = done
        self.progress.update(self.task, completed=done, description=text, refresh=True)

    def close(self) -> None:
        """Take the bar away; the rows stay."""
        self.progress.stop()


class NotebookDisplay:
    """One output that is redrawn: an HTML table, and a line of progress while the fit runs."""

    live = True

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self.html: Any = HTML
        self.rows: list[Row] = []
        self.status = ""
        self.done, self.began = 0, (0.0, 0)
        self.handle = display(HTML(""), display_id=True)

    def row(self, row: Row) -> None:
        """Add a row and draw again."""
        self.rows.append(row)
        self._draw()

    def bar(self, done: int, total: int, text: str) -> None:
        """Draw again with the bar at `done` of `total`, and the time that the rest will take."""
        now = time.perf_counter()
        if not self.done or done < self.done:
            self.began = now, done
        self.done, (start, first) = done, self.began
        left = (now - start) / (done - first) * (total - done) if done > first else None
        told = "" if left is None else f" {left // 60:02.0f}:{left % 60:02.0f} left"
        bar = f'<progress value="{done}" max="{total}" style="width:16em"></progress>'
        self.status = f"<div>{html.escape(text)} {bar} {done}/{total}{told}</div>"
        self._draw()

    def close(self) -> None:
        """Take the bar away; the table stays."""
        self.status = ""
        self._draw()

    def _draw(self) -> None:
        self.handle.update(self.html(self._table() + self.status))

    def _table(self) -> str:
        if not self.rows:
            return ""
        names, *rows = self.rows
        lines = [_html_row("th", names)]
        lines += [_html_row("td", map(format_cell, names, row)) for row in rows]
        return f"<table>{''.join(lines)}</table>"


def _html_row(tag: str, cells: Any) -> str:
    inner = "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"
