"""What the processes of a fit know of one another while it lasts: each says once a second where it
is, and the first that fails says why, at the store that torch connected them by."""

from __future__ import annotations

import json
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread, get_ident, main_thread
from types import FrameType
from typing import Any

from treadle.world import World, leave
from treadle.world.joining import ranks

BEAT_S = 1.0
SILENT_S = 2.5  # without a beat for so long, a process does not answer
EXPLAIN_S = 6.0  # to find out whose fault it is
ALIKE_S = 1.0  # for all to raise what one did
STUCK_S = 2.0  # for the main thread to leave by itself
LINGER_S = 2.0  # for the others to read what goes with this process
JUDGES = 8  # ranks that read where all others are; the rest wait for what they find


@dataclass(frozen=True)
class Beat:
    """Where a process is.

    Attributes:
        state: "in" the fit; "waited" in vain for the others; "raised" an error of its own; has
            "left" the others; is "done" with the fit.
        count: of its beats.
        time: by its clock.
        place: in the fit, and in the code.
    """

    state: str
    count: int
    time: float
    place: str


class Board:
    """Where processes write what all can read. When it is lost, it is empty from there on."""

    def __init__(self, store: Any, prefix: str, world: World) -> None:
        self._store, self._prefix = store, prefix
        self._rank, self._size = world.rank, world.size
        self.lost = False

    def write(self, beat: Beat) -> None:
        self._try(lambda: self._store.set(self._of(self._rank), json.dumps(asdict(beat))), None)

    def beat(self, rank: int) -> Beat | None:
        """The last one of a process; None if it has not come to this fit."""
        found = self._read(self._of(rank))
        return Beat(**json.loads(found)) if found else None

    def beats(self) -> list[Beat | None]:
        """The last one of each process."""
        return [self.beat(rank) for rank in range(self._size)]

    def note(self, cause: str) -> str:
        """Say why the fit cannot go on. The first to do so is right; gives what that said."""
        key = f"{self._prefix}/cause"
        first: str = self._try(lambda: self._store.compare_set(key, "", cause).decode(), cause)
        return first

    def cause(self) -> str:
        """What was noted."""
        return self._read(f"{self._prefix}/cause")

    def count(self, what: str, more: int) -> int:
        """How many there are of something, with `more`."""
        counted: int = self._try(lambda: self._store.add(f"{self._prefix}/{what}", more), 0)
        return counted

    def _of(self, rank: int) -> str:
        return f"{self._prefix}/{rank}"

    def _read(self, key: str) -> str:
        def read() -> str:
            return self._store.get(key).decode() if self._store.check([key]) else ""

        found: str = self._try(read, "")
        return found

    def _try(self, act: Callable[[], Any], otherwise: Any) -> Any:
        if self.lost:
            return otherwise
        try:
            return act()
        except RuntimeError:
            self.lost = True
            return otherwise


class Watch:
    """The thread of a process that beats, and looks out for the others.

    Args:
        world: the processes.
        board: where they write; used by this thread alone from now on.
        keeps_board: whether it goes with this process.
        place: says where the fit is.
    """

    def __init__(
        self, world: World, board: Board, keeps_board: bool, place: Callable[[], str]
    ) -> None:
        self.world, self.board, self.keeps_board, self.place = world, board, keeps_board, place
        self.cause = ""
        self.interrupted = False  # the main thread, by this
        self._watched, self._count, self._where = get_ident(), 0, "its first second"
        self._silent: set[int] = set()
        self._wake, self._taken, self._answered = Event(), Event(), Event()
        self._task: Callable[[], str | None] | None = None
        self._answer = ""
        self._left_at: float | None = None
        Thread(target=self._run, name="treadle-watch", daemon=True).start()

    # For the main thread

    def done(self) -> None:
        """The fit is over."""
        self._task = lambda: self._beat("done")
        self._wake.set()
        self._answered.wait(SILENT_S)

    def raised(self, cause: str, deliberate: bool) -> None:
        """This process has failed by itself. The others learn of it; unless all of them raised
        something deliberately, as this one did: then nobody waits for anybody, and they stay
        together."""
        self._ask(lambda: self._part(cause, deliberate), ALIKE_S + LINGER_S + 1, cause)

    def explain(self) -> str:
        """Why this process waited in vain for the others, as far as it can be known."""
        return self._ask(self._explained, 2 * EXPLAIN_S + LINGER_S, self._board_is_lost())

    def _ask(self, task: Callable[[], str], limit: float, otherwise: str) -> str:
        """Have the thread do it; `otherwise` is why this process leaves if that hangs."""
        self._task = task
        self._wake.set()
        if self._taken.wait(SILENT_S) and self._answered.wait(limit):
            return self._answer
        leave(otherwise)
        return otherwise

    # In the thread

    def _run(self) -> None:
        while self._task is None:
            if not self.cause:
                self._beat("in")
            self._look_out()
            self._wake.wait(BEAT_S)
        self._taken.set()
        self._answer = self._task() or ""
        self._answered.set()

    def _beat(self, state: str) -> None:
        self._count += 1
        if state == "in" and self._count > 1:
            self._where = f"{self.place()}, {_at(sys._current_frames().get(self._watched))}"
        self.board.write(Beat(state, self._count, time.time(), self._where))

    def _look_out(self) -> None:
        if self._left_at is None:
            cause = self.board.cause() or self._gone()
            if cause:
                self._leave(cause)
        elif time.monotonic() - self._left_at > STUCK_S:
            self._interrupt()

    def _leave(self, cause: str) -> None:
        if not self.cause:
            self.cause = self.board.note(cause)
            self._left_at = time.monotonic()
            leave(self.cause)
            self._beat("left")

    def _interrupt(self) -> None:
        """The others have left, and the main thread is in a loop of its own, or waits. Where
        Ctrl-C waits for work to be whole, it takes a second one."""
        self._left_at = time.monotonic()
        if self._watched == main_thread().ident and callable(signal.getsignal(signal.SIGINT)):
            self.interrupted = True
            signal.pthread_kill(self._watched, signal.SIGINT)

    def _explained(self) -> str:
        began, before = time.monotonic(), self._others(0.0)
        cause = self.cause
        while not cause:
            self._beat("waited")
            cause = self.board.cause() or self._gone()
            waited = time.monotonic() - began
            if not cause and waited > SILENT_S:
                now = self._others(waited)
                cause = self._board_is_lost() if self.board.lost else self._absent(before, now)
                if not cause and waited > EXPLAIN_S:
                    cause = self._all_wait(now)
            time.sleep(0.05)
        self._leave(cause)
        self._linger()
        return self.cause

    def _others(self, waited: float) -> list[Beat | None]:
        """Where all are, if this process is one to look; all do when nobody tells them."""
        look = self.world.rank < JUDGES or waited > EXPLAIN_S
        return self.board.beats() if look else []

    def _part(self, cause: str, deliberate: bool) -> str:
        until = time.monotonic() + ALIKE_S
        if deliberate and not self.cause:
            self._beat("raised")
            self.board.count("raised", 1)
            while time.monotonic() < until and not self.board.cause():
                if self.board.count("raised", 0) == self.world.size:
                    return ""
                time.sleep(0.02)
        self._leave(cause)
        self._linger()
        return self.cause

    def _linger(self) -> None:
        until = time.monotonic() + LINGER_S
        while self.keeps_board and time.monotonic() < until:
            beats, processes = self.board.beats(), self.world.processes
            if all(
                rank in self._silent
                or beat is None
                or beat.state in ("left", "done")
                or process.fate()
                for rank, (beat, process) in enumerate(zip(beats, processes, strict=True))
            ):
                return
            time.sleep(0.05)

    # What it looks like

    def _gone(self) -> str:
        """Of a process on this machine that ended in the fit."""
        for rank, process in enumerate(self.world.processes):
            fate = process.fate()
            if fate:
                beat = self.board.beat(rank)
                if beat is None:
                    where = "" if self.board.lost else ", before it came to this fit"
                    return f"{self._name(rank)} {fate}{where}"
                if beat.state != "done":
                    return f"{self._name(rank)} {fate}, last heard of in {beat.place}"
        return ""

    def _absent(self, before: Sequence[Beat | None], now: Sequence[Beat | None]) -> str:
        """Of processes that are not where the others wait for them."""
        silent, busy, away = [], [], []
        for rank, (then, beat) in enumerate(zip(before or now, now, strict=True)):
            if beat is None:
                away.append(f"{self._name(rank)} has not come to this fit")
            elif beat.state == "done":
                away.append(f"{self._name(rank)} is done with this fit, after {beat.place}")
            elif beat.state == "in" and then is not None and then.count == beat.count:
                self._silent.add(rank)
                ago = max(time.time() - beat.time, 0)
                silent.append(
                    f"{self._name(rank)} does not answer: last heard of {ago:.0f} s ago, in "
                    f"{beat.place}"
                )
            elif beat.state == "in":
                busy.append(f"{self._name(rank)} keeps the others waiting, in {beat.place}")
        return "; ".join((silent or busy or away)[:3])

    def _all_wait(self, now: Sequence[Beat | None]) -> str:
        places: dict[str, list[int]] = {}
        for rank, beat in enumerate(now):
            if beat:
                places.setdefault(beat.place, []).append(rank)
        told = "; ".join([f"{ranks(who)} in {place}" for place, who in places.items()][:3])
        return (
            "the processes waited for one another; all must make the same calls in the same "
            f"order, and reach each other: {told}"
        )

    def _board_is_lost(self) -> str:
        return (
            f"{self._name(0)}, or torchrun on its machine, does not answer, where the processes "
            "keep what they tell one another"
        )

    def _name(self, rank: int) -> str:
        return f"rank {rank} ({self.world.processes[rank]})"


_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


def _at(frame: FrameType | None) -> str:
    """Where the code is, and where the nearest of it that is nobody's library."""
    if frame is None:
        return "in no code"
    own: FrameType | None = frame
    while own is not None and own.f_code.co_filename.startswith((*_LIBRARIES, "<")):
        own = own.f_back
    called = f", called by {_line(own)}" if own is not None and own is not frame else ""
    return f"at {_line(frame)}{called}"


def _line(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_name} ({Path(code.co_filename).name}, line {frame.f_lineno})"
