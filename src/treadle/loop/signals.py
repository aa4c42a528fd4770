"""Signals that ask a process to end: noted when they come, obeyed where the work can be left."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Self

from treadle.errors import UsageError

# What a scheduler sends before it takes the machine away. Not every platform has them all.
ENDING: tuple[int, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)

EX_TEMPFAIL = 75  # of sysexits.h: failed for now, worth another try


class Preempted(SystemExit):
    """A fit was left before its end because it was asked to, with a checkpoint to go on from.

    Uncaught it ends the process with the status `code`: 128 + n after the signal n, 75 after a
    time limit. It prints nothing.

    Attributes:
        code: the exit status.
        reason: what asked for it: "SIGTERM", "a time limit of 55 minutes", ...
        checkpoint: the newest checkpoint, which is on the disk; None if there is none yet.

    >>> left = Preempted(143, "SIGTERM")
    >>> left.code, str(left)
    (143, 'SIGTERM ended the fit')
    """

    code: int

    def __init__(self, code: int, reason: str, checkpoint: Path | None = None) -> None:
        super().__init__(code)
        self.reason, self.checkpoint = reason, checkpoint

    def __str__(self) -> str:
        told = f"; the newest checkpoint is {self.checkpoint}" if self.checkpoint else ""
        return f"{self.reason} ended the fit{told}"


class EndRequest:
    """Asks a fit to end: after the first of some signals, or when a time is over.

    Signals are noted while a `with` block lasts, in the main thread only; then the handlers of
    before are put back. A second signal ends the process at once, by itself. One that is being
    ignored when the block begins stays so.

    Args:
        signals: their numbers.
        max_minutes: from when this is made.

    Raises:
        UsageError: if `max_minutes` is not above 0.

    Attributes:
        number: the signal that has come since the block began, or None.

    >>> with EndRequest([signal.SIGTERM]) as request:
    ...     os.kill(os.getpid(), signal.SIGTERM)
    >>> request.asked()
    Preempted(143)
    """

    def __init__(self, signals: Iterable[int], max_minutes: float | None = None) -> None:
        if max_minutes is not None and not max_minutes > 0:
            raise UsageError(f"max_minutes is {max_minutes}; give a number above 0, or None.")
        self.signals, self.max_minutes = tuple(signals), max_minutes
        self.until = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        self.number: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def asked(self) -> Preempted | None:
        """What to raise, if it is time to end."""
        return self.preempted(self.code)

    @property
    def code(self) -> int:
        """The exit status, if it is time to end, else 0."""
        if self.number is not None:
            return 128 + self.number
        return EX_TEMPFAIL if time.monotonic() > self.until else 0

    def preempted(self, code: int) -> Preempted | None:
        """What to raise for a `code`, which may be that of another process of the run."""
        if code == EX_TEMPFAIL:
            minutes = self.max_minutes or 0.0
            told = f"{minutes:.3g} minutes" if minutes >= 1 else f"{60 * minutes:.3g} seconds"
            return Preempted(code, f"a time limit of {told}")
        return Preempted(code, signal.Signals(code - 128).name) if code else None

    def __enter__(self) -> Self:
        self.number = None
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):  # None: set by C, and not to be put back
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            number, before = self._before.popitem()
            if signal.getsignal(number) == self._note:  # else somebody has set another since
                signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = signal.Signals(number)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
