"""How far a download or an unpacking has come: a bar on a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["TransferBar"]


class TransferBar:
    """A bar of bytes on stderr while the block runs, if stderr is a terminal; else nothing."""

    def __init__(self, label: str, total: int | None = None) -> None:
        self._label, self._total = label, total
        self._bar: Progress | None = None

    @property
    def live(self) -> bool:
        """Whether anyone sees a bar."""
        return self._bar is not None

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        console = Console(stderr=True)
        if console.is_terminal:
            columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, Remaining(), console=console)
            self._task = self._bar.add_task(self._label, total=self._total)
            self._bar.start()
        return self

    def at(self, done: int, total: int | None = None) -> None:
        """`done` bytes are there, of `total` where that is known."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)

    def say(self, text: str) -> None:
        """One line on stderr, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
