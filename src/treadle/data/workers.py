"""Do tasks ahead of time in threads, and hand the results over in order.

Threads, not processes: decoding and resizing leave Python's lock, nothing is copied between
processes, and nothing has to be started or pickled.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Thread, current_thread, main_thread
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from treadle.data.sharing import processes_here
from treadle.errors import DataError
from treadle.interrupts import undivided

__all__ = ["Stalled", "closed_at_exit", "default_workers", "in_order"]

Task = TypeVar("Task")
Result = TypeVar("Result")

_LOOK_UP_S = 0.1
"""So often a worker without work looks whether it is still needed."""

_STALL_S = 300.0
"""So long a worker may take for one sample, while the caller waits for it."""

_LOOKS = 100
"""So often it is looked after in that time: a process that was stopped meanwhile loses one."""

_LEAVE_S = 5.0
"""So long workers are waited for in the end; one that is stuck is left behind."""

_alive: WeakSet[Generator[Any, None, None]] = WeakSet()


def default_workers() -> int:
    """The CPUs that this process may use, at most 8; where others of this run are on the machine,
    its share of them."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(8, max((usable or 1) // processes_here(), 1))


def closed_at_exit(generator: Generator[Result, None, None]) -> Generator[Result, None, None]:
    """The same generator. If it is still alive when the process ends, it is closed while all that
    its end needs is still there; and its threads are daemons, so that one that is stuck does not
    keep the process from ending."""
    _alive.add(generator)
    return generator


@atexit.register
def _close_all() -> None:
    for generator in list(_alive):
        with suppress(ValueError):  # it is running, in another thread
            generator.close()


def in_order(
    work: Callable[[Task, Event], Result], tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    """`work(task, stop)` of each task, in order, at most `2 * workers` tasks ahead of the caller.

    With `workers=0` each is done when it is asked for. `stop` is set when nobody waits any more:
    the iterator was closed, a task failed, or the process is ending. Work under way should then
    end early; what is pending is not begun, and no thread is left when the iterator is closed,
    unless it is stuck in its work.

    Raises `Stalled` where the task that is waited for has not asked `stop.is_set()`, as it should
    before each sample, for 300 seconds.
    """
    return closed_at_exit(_in_order(work, tasks, workers))


def _in_order(
    work: Callable[[Task, Event], Result], tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    stop = _Stop()
    if workers == 0:
        for task in tasks:
            yield work(task, stop)
        return
    todo: SimpleQueue[_Job[Result] | None] = SimpleQueue()
    threads = [
        Thread(target=_run, args=(todo, stop), name=f"treadle-data-{k}", daemon=True)
        for k in range(workers)
    ]
    pending: deque[_Job[Result]] = deque()
    try:
        _start(threads)
        for task in tasks:
            job = _Job(work, task, stop)
            pending.append(job)
            todo.put(job)
            del job
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        _end(threads, todo, stop)


@undivided
def _start(threads: list[Thread]) -> None:
    for thread in threads:
        thread.start()


@undivided
def _end(threads: list[Thread], todo: SimpleQueue[Any], stop: Event) -> None:
    stop.set()
    for _ in threads:
        todo.put(None)
    deadline = time.monotonic() + _LEAVE_S
    for thread in threads:
        if thread.ident is not None:  # else the start of one before it failed
            thread.join(max(deadline - time.monotonic(), 0))


class Stalled(DataError):
    """A worker that has been at one sample for too long; of its `task` so many are `begun`."""

    def __init__(self, task: Any, begun: int, thread: Thread) -> None:
        frame = sys._current_frames().get(thread.ident or 0)
        stack = traceback.extract_stack(frame) if frame is not None else []
        place = f", in {stack[-1].name} ({stack[-1].filename}, line {stack[-1].lineno})"
        super().__init__(
            f"Worker {thread.name} has been at it for {_STALL_S:g} seconds{place if stack else ''}."
        )
        self.task, self.begun = task, begun
        self.add_note("The worker's stack:\n" + "".join(traceback.format_list(stack)))


class _Stop(Event):
    """Is set, too, when the process ends while an iterator is alive: its threads are waited for."""

    def is_set(self) -> bool:
        return super().is_set() or not main_thread().is_alive()


class _Pulse(Event):
    """The stop of one task, that counts how often it was asked."""

    def __init__(self, stop: Event) -> None:
        super().__init__()
        self.stop, self.begun = stop, 0

    def is_set(self) -> bool:
        self.begun += 1
        return self.stop.is_set()


class _Job(Generic[Result]):
    """A task to be done by one of the threads."""

    def __init__(self, work: Callable[[Task, Event], Result], task: Task, stop: Event) -> None:
        self.task, self.pulse = task, _Pulse(stop)
        # A lambda would hold this job, and with it a batch until the garbage is collected.
        self.do: Callable[[], Result] = partial(work, task, self.pulse)
        self.future: Future[Result] = Future()
        self.thread: Thread | None = None

    def run(self) -> None:
        self.thread = current_thread()
        try:
            self.future.set_result(self.do())
        except BaseException as error:
            self.future.set_exception(error)
            del self  # which the error's traceback would hold, and its future the error

    def result(self) -> Result:
        """What the work returned or raised; raises `Stalled` if it does not go on."""
        looks, begun = 0, -1
        try:
            while looks < _LOOKS or self.thread is None:
                with suppress(TimeoutError):  # ours; or that of the work, which `done` tells
                    return self.future.result(_STALL_S / _LOOKS)
                if self.future.done():
                    return self.future.result()
                looks = looks + 1 if self.pulse.begun == begun else 0
                begun = self.pulse.begun
            raise Stalled(self.task, begun, self.thread)
        finally:
            del self  # as above


def _run(todo: SimpleQueue[_Job[Result] | None], stop: Event) -> None:
    while not stop.is_set():
        try:
            job = todo.get(timeout=_LOOK_UP_S)
        except Empty:
            continue
        if job is None:
            return
        job.run()
        del job
