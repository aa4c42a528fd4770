"""Show the source of things, since reading it is how one learns what they do."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from treadle.errors import UsageError


def print_source(obj: Any) -> None:
    """Print the source of a function, method, class or module; of a partial, that of its function.

    Raises:
        UsageError: if `obj` has no Python source (a builtin, a plain value).

    >>> from treadle.schedule import sched_no
    >>> print_source(sched_no)
    def sched_no(start: float, end: float, pos: float) -> float:
        \"\"\"Constant at `start`.\"\"\"
        return start
    """
    obj = obj.func if isinstance(obj, partial) else obj
    try:
        source = inspect.getsource(obj)
    except (TypeError, OSError) as error:
        raise UsageError(
            f"print_source got {obj!r}, of which there is no Python source; "
            "give a function, method, class or module."
        ) from error
    print(source.rstrip())
