"""Chains as mathematics, for `Optimizer.explain`: what steppers say of themselves, what they do."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from treadle.optim.chain import Chain, undisturbed
from treadle.optim.engine.codegen_c import c_source
from treadle.optim.engine.codegen_triton import triton_source
from treadle.optim.engine.rehearsal import rehearse_program
from treadle.optim.engine.tape import (
    FLOATS,
    Kind,
    NotRecorded,
    NotThisTime,
    OnMatrices,
    ShapeAsked,
    Type,
)
from treadle.optim.groups import Group, Hypers

State = Mapping[Tensor, dict[str, Any]]
Flags = Mapping[Tensor, Mapping[str, Any]]


def explain(
    groups: Sequence[Group],
    chains: Sequence[Chain],
    views: Sequence[Hypers],
    state: State,
    flags: Flags,
    program: bool,
    source: bool,
) -> str:
    """See `Optimizer.explain`. Nothing that is given here is changed."""
    texts: list[str] = []
    for fns in dict.fromkeys(tuple(chain.fns) for chain in chains):
        mine = [i for i, chain in enumerate(chains) if tuple(chain.fns) == fns]
        texts.append(f"group{'s' * (len(mine) > 1)} {', '.join(map(str, mine))}")
        chain = chains[mine[0]]
        texts += _columns([(s.name, [_own_words(s.fn)]) for s in chain])
        if program or source:
            pairs = [(groups[i], views[i]) for i in mine]
            for lines in _versions(chain, _cases(pairs, state, flags), program, source):
                texts += lines
            texts.append("")
    return "\n".join(texts).rstrip("\n")


def _columns(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Lines of names and what belongs to them, which may be several lines."""
    width = max(len(name) for name, _ in rows)
    return [
        f"  {name if k == 0 else '':{width}}  {line}"
        for name, lines in rows
        for k, line in enumerate(lines)
    ]


@dataclass(frozen=True)
class _Case:
    """Parameters for which a chain is recorded together."""

    hypers: dict[str, Any]  # with the flags
    flags: Mapping[str, Any]
    numbers: Mapping[str, Any]
    kind: Kind
    params: list[Tensor]

    @property
    def title(self) -> str:
        """What sets these parameters apart."""
        parts = [f"in {str(self.kind.dtype).removeprefix('torch.')}"]
        parts += [f"on {self.kind.device}"] * (self.kind.device.type != "cpu")
        parts += [f"of shape {tuple(self.kind.shape)}"] if self.kind.shape else []
        given = ", ".join(f"{name}={x!r}" for name, x in self.flags.items())
        parts += [f"with {given}"] if given else []
        return " ".join(parts)

    def by_shape(self) -> list[_Case]:
        """One case for each shape."""
        shapes = dict.fromkeys(p.shape for p in self.params) or {torch.Size((2,)): None}
        return [
            replace(
                self,
                kind=replace(self.kind, shape=shape),
                params=[p for p in self.params if p.shape == shape],
            )
            for shape in shapes
        ]


def _cases(pairs: Sequence[tuple[Group, Hypers]], state: State, flags: Flags) -> list[_Case]:
    """The parameters of groups, by all that can lead to another program."""
    found: dict[Any, _Case] = {}
    for i, (group, hypers) in enumerate(pairs):
        for p in group["params"]:
            stats = state.get(p, {})
            mine = {k: v for k, v in flags.get(p, {}).items() if k in hypers.names}
            numbers = {k: v for k, v in stats.items() if not isinstance(v, Tensor)}
            types = {
                k: Type(v.dtype, v.shape == p.shape) for k, v in stats.items() if k not in numbers
            }
            kind = Kind(p.dtype, p.device, None if p.dim() else p.shape, types)
            key = i, p.dtype, p.device, kind.shape, repr((types, numbers, mine))
            case = _Case({**hypers, **mine}, mine, numbers, kind, [])
            found.setdefault(key, case).params.append(p)
    if not found:
        kind = Kind(torch.float32, torch.device("cpu"), None, {})
        return [_Case(dict(pairs[0][1]), {}, {}, kind, [])]
    return list(found.values())


def _versions(
    chain: Chain, cases: Sequence[_Case], program: bool, source: bool
) -> Iterator[list[str]]:
    """For each of the programs that `chain` has, a title and what it does."""
    found: dict[tuple[str, ...], Counter[str]] = {}
    todo = list(cases)
    while todo:
        case = todo.pop(0)
        try:
            lines = _recorded(chain, case, program, source)
        except ShapeAsked:
            todo[:0] = case.by_shape()
            continue
        except NotRecorded as refusal:
            lines = _refused(refusal)
        found.setdefault(tuple(lines), Counter())[case.title] += len(case.params)
    for (title, *lines), whose in found.items():
        told = (
            f"{n} parameter{'s' * (n > 1)} {x}" if n else f"parameters {x}"
            for x, n in whose.items()
        )
        yield ["", f"  {title} {' and '.join(told)}:", *lines]


def _recorded(chain: Chain, case: _Case, program: bool, source: bool) -> list[str]:
    if case.kind.dtype not in FLOATS:
        raise NotRecorded("no program computes in that dtype")
    with undisturbed():
        rehearsal = rehearse_program(chain, case.hypers, case.numbers, case.kind)
    lines = ["as recorded for"]
    if program:
        lines += _columns([(s.name, x) for s, x in zip(chain, rehearsal.lines, strict=True)])
    if source:
        on_gpu = case.kind.device.type == "cuda"
        text = (triton_source if on_gpu else c_source)(rehearsal.program)
        lines += ["", f"  as {'Triton' if on_gpu else 'C'}:", "", text.rstrip()]
    return lines


def _refused(refusal: NotRecorded) -> list[str]:
    if isinstance(refusal, OnMatrices):
        mend = "these are stepped in stacks of one shape, where that is quicker, or one by one"
    elif isinstance(refusal, NotThisTime):
        mend = "the reference engine takes this step one by one, and later ones may be recorded"
    else:
        mend = "the reference engine steps these one by one"
    return ["not recorded for", f"  {refusal};", f"  {mend}"]


def _own_words(fn: Callable[..., Any]) -> str:
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
