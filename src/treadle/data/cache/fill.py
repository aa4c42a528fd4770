"""Fill a cache ahead, all cores at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from threading import Event

from treadle.data.cache.base import Frame, PixelCache, Pixels
from treadle.data.workers import default_workers, in_order

__all__ = ["fill"]

_AT_ONCE = 16  # pictures a task: to hand over a task costs a tenth of decoding a small picture


def fill(
    cache: PixelCache,
    make: Callable[[int], tuple[Pixels, Frame] | None],
    workers: int | None = None,
    bar: bool = True,
) -> None:
    """Put every picture that `cache` lacks: `make(index)` decodes it, in `workers` threads.

    Where `make` returns None the picture is left out: its file is bad, and is to be skipped.
    `workers=None` means the CPUs at hand, at most 8; 0 works in the caller. On a terminal a bar
    shows how far it is, unless `bar` is false; elsewhere nothing is printed. A cache that gives up
    (its disk is full) ends it without an error.

    On Ctrl-C, and on the first exception of `make` (raised here, with a note that names the index),
    no further picture is begun, and no thread is left. What is done stays done.

    >>> import numpy as np
    >>> from treadle.data.cache import MemoryCache
    >>> cache = MemoryCache(3)
    >>> fill(cache, lambda index: (np.full((2, 2), index, np.uint8), (2, 2)), workers=2)
    >>> cache.complete, int(cache.get(2)[0].max())
    (True, 2)
    """
    if cache.complete:
        return

    def work(indices: range, stop: Event) -> None:
        for index in indices:
            if stop.is_set():
                return
            if cache.get(index) is None:
                with _naming(index):
                    made = make(index)
                if made is None:
                    cache.leave_out(index)
                else:
                    cache.put(index, *made)

    tasks = [range(i, min(i + _AT_ONCE, cache.n)) for i in range(0, cache.n, _AT_ONCE)]
    done = in_order(work, tasks, default_workers() if workers is None else workers)
    with _shown(cache.n, bar) as show, closing(done):
        for task, _ in zip(tasks, done, strict=True):
            if not cache.filled:
                return  # it gave up, and has said why
            show(task.stop)


@contextmanager
def _naming(index: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"while picture {index} was made for the cache")
        raise


@contextmanager
def _shown(total: int, bar: bool) -> Iterator[Callable[[int], None]]:
    """A function that moves a bar on the terminal to so many of `total`; else one of no effect."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if not (bar and console.is_terminal):
        yield lambda done: None
        return
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("decoding", total=total)
        yield lambda done: progress.update(task, completed=done)
