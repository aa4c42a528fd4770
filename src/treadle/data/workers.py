"""Do tasks ahead of time in threads, and hand the results over in order.

Threads, not processes: decoding and resizing leave Python's lock, nothing is copied between
processes, and nothing has to be started or pickled.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Event, Thread, main_thread
from typing import Any, Generic, TypeVar

from treadle.interrupts import undivided

__all__ = ["default_workers", "in_order"]

Task = TypeVar("Task")
Result = TypeVar("Result")

_LOOK_UP_S = 0.1
"""So often a worker without work looks whether it is still needed."""


def default_workers() -> int:
    """The CPUs that this process may use, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(8, usable or 1)


def in_order(
    work: Callable[[Task, Event], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    """`work(task, stop)` of each task, in order, at most `2 * workers` tasks ahead of the caller.

    With `workers=0` each is done when it is asked for. `stop` is set when nobody waits any more:
    the iterator was closed, a task failed, or the process is ending. Work under way should then
    end early; what is pending is not begun, and no thread is left when the iterator is closed.
    """
    stop = _Stop()
    if workers == 0:
        for task in tasks:
            yield work(task, stop)
        return
    todo: SimpleQueue[_Job[Result] | None] = SimpleQueue()
    threads = [
        Thread(target=_run, args=(todo, stop), name=f"treadle-data-{k}") for k in range(workers)
    ]
    pending: deque[Future[Result]] = deque()
    try:
        _start(threads)
        for task in tasks:
            job = _Job(work, task, stop)
            pending.append(job.future)
            todo.put(job)
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
    for thread in threads:
        if thread.ident is not None:  # else the start of one before it failed
            thread.join()


class _Stop(Event):
    """Is set, too, when the process ends while an iterator is alive: its threads are waited for."""

    def is_set(self) -> bool:
        return super().is_set() or not main_thread().is_alive()


class _Job(Generic[Result]):
    """A task to be done by one of the threads."""

    def __init__(self, work: Callable[[Task, Event], Result], task: Task, stop: Event) -> None:
        self.do: Callable[[], Result] = lambda: work(task, stop)
        self.future: Future[Result] = Future()

    def run(self) -> None:
        try:
            self.future.set_result(self.do())
        except BaseException as error:
            self.future.set_exception(error)
            del self  # which the error's traceback would hold, and its future the error


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
