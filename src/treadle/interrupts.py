"""Ctrl-C where it does no harm: what must happen as a whole is not divided by KeyboardInterrupt.

Python raises KeyboardInterrupt between any two steps of the main thread: also after a value was
changed and before it was noted that it is to be put back, or in the `finally` that puts it back. So
Treadle's verbs are `undivided`: an interrupt that arrives in one waits until it is done. Within
them, what takes long (the batches of a pass) is `interruptible`, and there it is raised at once.
Of the calls under way the innermost that is one or the other decides. Who asks again after a
second is not made to wait: then an interrupt is raised wherever it falls.

All this is for the main thread and for SIGINT with a handler of Python's. The handler is Treadle's
only as long as an undivided call or a `scoped` block lasts, and costs nothing until it is called.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import Any, Generic, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])
Handler = Callable[[int, FrameType | None], Any]

_PATIENCE_S = 1.0

_WHOLE: set[CodeType] = set()  # calls that no interrupt divides
_OPEN: set[CodeType] = set()  # calls in which one is raised at once


class _State:
    """Of the main thread; no other has interrupts."""

    handler: Handler | None = None  # that of before, while ours is set
    waiting = False  # an interrupt is to be raised when the undivided call is done
    first = math.inf  # when the first one came since our handler was set


def undivided(function: Callable[P, T]) -> Callable[P, T]:
    """No KeyboardInterrupt is raised within calls of `function`, but when they are done.

    >>> @undivided
    ... def both():
    ...     signal.raise_signal(signal.SIGINT)
    ...     print("done as a whole")
    >>> try:
    ...     both()
    ... except KeyboardInterrupt:
    ...     print("and then interrupted")
    done as a whole
    and then interrupted
    """

    @wraps(function)
    def undivided_call(*args: P.args, **kwargs: P.kwargs) -> T:
        outermost = _State.handler is None and _begin()
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            _State.waiting = False  # it is on its way
            raise
        finally:
            if outermost or _State.waiting:
                _end(outermost)

    _WHOLE.add(cast(FunctionType, undivided_call).__code__)
    return undivided_call


def interruptible(function: Function) -> Function:
    """Within calls of `function` KeyboardInterrupt is raised at once, also in an undivided one. One
    that has waited is raised when the next call in it that is undivided or scoped has been made.

    The function itself is returned: it costs nothing, and no frame.
    """
    _OPEN.add(function.__code__)
    return function


def scoped(function: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """`contextlib.contextmanager`, with what stands before and after the `yield` undivided."""
    made = contextmanager(function)

    @wraps(function)
    def scope(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        return _Scope(made(*args, **kwargs))

    return scope


class _Scope(AbstractContextManager[T], Generic[T]):
    def __init__(self, made: AbstractContextManager[T]) -> None:
        self._made, self._outermost = made, False

    def __enter__(self) -> T:
        self._outermost = _begin()
        try:
            value = self._made.__enter__()
            try:
                _raise_if_free(sys._getframe(1))
            except BaseException:
                self._made.__exit__(*sys.exc_info())
                raise
        except BaseException:
            _end(self._outermost)
            raise
        return value

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        try:
            return self._made.__exit__(kind, error, traceback)
        finally:
            if isinstance(error, KeyboardInterrupt):
                _State.waiting = False
            _end(self._outermost)


_WHOLE |= {_Scope.__enter__.__code__, _Scope.__exit__.__code__}


def _begin() -> bool:
    """Set our handler. Gives whether this did so: not if it was set, or it cannot be."""
    if _State.handler is not None or not _is_main_thread():
        return False
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # ignored, or not Python's
        return False
    _State.waiting, _State.first = False, math.inf
    _State.handler = signal.default_int_handler if before is _interrupted else before
    try:
        signal.signal(signal.SIGINT, _interrupted)
    except BaseException:
        _State.handler = None
        raise
    return True


def _end(outermost: bool) -> None:
    """Take our handler away if `_begin` set it; raise what has waited if nothing else holds it."""
    if not outermost:
        _raise_if_free(sys._getframe(2))
        return
    handler, _State.handler = _State.handler, None
    if signal.getsignal(signal.SIGINT) is _interrupted:  # else somebody has set another since
        signal.signal(signal.SIGINT, handler)
    waiting, _State.waiting = _State.waiting, False
    if waiting and handler is not None:
        handler(signal.SIGINT, sys._getframe(2))


def _interrupted(number: int, frame: FrameType | None) -> None:
    """The handler."""
    now = time.monotonic()
    _State.first = min(_State.first, now)
    _State.waiting = now - _State.first < _PATIENCE_S and _must_wait(frame)
    if not _State.waiting:
        (_State.handler or signal.default_int_handler)(number, frame)


def _must_wait(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in _OPEN:
            return False
        if frame.f_code in _WHOLE:
            return True
        frame = frame.f_back
    return False


def _raise_if_free(frame: FrameType | None) -> None:
    if _State.waiting and _is_main_thread() and not _must_wait(frame):
        _raise_waiting()


def _raise_waiting() -> None:
    if _is_main_thread():
        _State.waiting = False
        (_State.handler or signal.default_int_handler)(signal.SIGINT, None)


def _is_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident
