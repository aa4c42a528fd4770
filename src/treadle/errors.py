"""What can go wrong, as a tree. Every message is a sentence: what was given, what was expected,
what to do.

    TreadleError
    ├── UsageError      an argument that cannot be meant: an unknown architecture, a bad number
    │   ├── ChainError      steppers that cannot run together (also a TypeError)
    │   └── CallbackError   a callback that cannot do what it says
    ├── DataError       a path, a folder, an archive or a file that is not what was expected
    │   └── DownloadError   the network or a mirror did not deliver
    └── RankError       a process of a run of several failed, left or does not answer

The command line turns each of these into one line on stderr and exit status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class TreadleError(Exception):
    """The root of all errors that Treadle raises on purpose."""


class UsageError(TreadleError, ValueError):
    """An argument that cannot be meant."""


class ChainError(UsageError, TypeError):
    """A chain of steppers that cannot run as it stands; names the stepper and the parameter."""


class CallbackError(UsageError):
    """A callback that cannot do what it says; names the callback and the mend."""


class DataError(TreadleError):
    """A path, folder, archive or file that is not what was expected; names it."""


class DownloadError(DataError):
    """A download that did not arrive whole."""


class RankError(TreadleError):
    """A process of a run of several that failed, left or does not answer; names its rank."""


_MOST_LISTED = 30


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause that names the nearest of `known`, or lists them if none is near.

    >>> nearest("resnet43", ["resnet34", "vgg16"])
    'did you mean resnet34?'
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    others = f" and {len(known) - _MOST_LISTED} more" if len(known) > _MOST_LISTED else ""
    return f"known are {', '.join(known[:_MOST_LISTED]) or 'none'}{others}."


def printable(value: Any) -> str:
    """`value` as text that a terminal takes as text: what is no character, such as the bytes of a
    file's name that are not UTF-8, and what would steer the terminal is written as an escape.

    >>> printable("caf\\udce9 \\x1b[31m")
    'caf\\\\udce9 \\\\x1b[31m'
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
