"""Do tasks ahead of time in threads, and hand the results over in order.

Threads, not processes: decoding and resizing leave Python's lock, nothing is copied between
processes, and nothing has to be started or pickled.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

__all__ = ["default_workers", "in_order"]

Task = TypeVar("Task")
Result = TypeVar("Result")


def default_workers() -> int:
    """The CPUs that this process may use, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(8, usable or 1)


def in_order(
    work: Callable[[Task, Event], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    """`work(task, stop)` of each task, in order, at most `2 * workers` tasks ahead of the caller.

    With `workers=0` each is done when it is asked for. `stop` is set when nobody waits any more:
    the iterator was closed, or a task failed. Work under way should then end early; what is
    pending is not begun, and no thread is left when the iterator is closed.
    """
    stop = Event()
    if workers == 0:
        for task in tasks:
            yield work(task, stop)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="treadle-data")
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(work, task, stop))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
