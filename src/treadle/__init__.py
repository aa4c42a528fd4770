"""Treadle: open every part of training, and pay nothing for it.

`from treadle.all import *` brings the names for a notebook; `treadle.Learner` and the others are
here too, loaded when they are first asked for, so that `import treadle` itself costs nothing.
`treadle.register` is here at once: what exports may name is defined in files that need no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treadle.registry import register as register

if TYPE_CHECKING:
    from treadle.all import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    from importlib import import_module
    from importlib.util import find_spec

    # A submodule is for the import system to load, and needs none of the others.
    if not name.startswith("_") and find_spec(f"treadle.{name}") is None:
        names = import_module("treadle.all")
        if name in names.__all__:
            return getattr(names, name)
    raise AttributeError(f"module 'treadle' has no attribute {name!r}")
