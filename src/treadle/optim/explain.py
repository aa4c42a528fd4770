"""A chain as mathematics, for `Optimizer.explain`: what each stepper says of itself."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

from treadle.optim.chain import Chain


def explain_chain(chain: Chain) -> str:
    """One line a stepper, with the names in a column."""
    width = max(len(stepper.name) for stepper in chain)
    lines = [f"  {stepper.name:{width}}  {_formula(stepper.fn)}" for stepper in chain]
    return "\n".join(lines)


def _formula(fn: Callable[..., Any]) -> str:
    """The first sentence of the docstring, or else the source, on one line."""
    fn = inspect.unwrap(fn)
    while isinstance(fn, functools.partial):
        fn = inspect.unwrap(fn.func)
    fn = fn if inspect.isroutine(fn) else type(fn).__call__
    if doc := inspect.getdoc(fn):
        paragraph = " ".join(doc.split("\n\n")[0].split())
        return re.split(r"\.(?=\s|$)", paragraph)[0]
    try:
        source = textwrap.dedent(inspect.getsource(fn))
    except (OSError, TypeError):  # typed into an interpreter, or built in
        return "(no docstring and no source)"
    if not source.startswith(("def ", "@")):  # a lambda, with the line that it stands in
        return " ".join(source.split())
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.FunctionDef)
    return "; ".join(" ".join(ast.unparse(line).split()) for line in body.body)
