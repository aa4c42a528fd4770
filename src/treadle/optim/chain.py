"""What a chain of steppers needs and gives, found out before the first step.

A signature says what a stepper needs. What it gives is seen in a rehearsal: the chain runs once on
a stand-in, a parameter of the same number of dimensions and dtype with at most two entries a
dimension, on the CPU. The rehearsal touches no real parameter and leaves the random number
generators of torch, numpy and Python as they were.
"""

from __future__ import annotations

import functools
import inspect
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treadle.errors import ChainError, nearest

# Who usually gives a stat: only for the mend in an error message.
_USUAL_SOURCE = {
    "grad_avg": "average_grad",
    "sqr_avg": "average_sqr_grad",
    "step": "step_stat",
    "local_lr": "larc_layer_lr",
}


@dataclass(frozen=True)
class Stepper:
    """One link of a chain: the function, and what its signature says."""

    fn: Callable[..., Any]
    name: str
    required: tuple[str, ...]  # arguments after the parameter that have no default
    optional: Mapping[str, Any]  # the others, with the default that the function itself uses
    declared: Mapping[str, Any]  # `fn.defaults`: values for hyper-parameters
    takes_all: bool  # has **kwargs

    def __call__(self, p: Tensor, known: Mapping[str, Any]) -> Any:
        if not self.takes_all:
            asked = (*self.required, *self.optional)
            known = {name: known[name] for name in asked if name in known}
        return self.fn(p, **known)


class Chain(tuple[Stepper, ...]):
    """Steppers in the order in which they run."""

    kept: frozenset[str] = frozenset()  # the stats that rehearsals have seen it keep
    kept_known = True  # whether they have seen all of it

    @property
    def fns(self) -> list[Callable[..., Any]]:
        """The steppers as they were given."""
        return [stepper.fn for stepper in self]

    @property
    def hyper_names(self) -> frozenset[str]:
        """What steppers ask for and the chain does not keep as state."""
        return self.names - self.kept

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """Every name that some stepper asks for, and `lr` where one takes **kwargs.

        Learners and schedulers give every optimizer an lr, and a stepper may read it from its
        **kwargs without naming it.
        """
        named = frozenset(n for s in self for n in (*s.required, *s.optional, *s.declared))
        return named | {"lr"} if any(stepper.takes_all for stepper in self) else named

    @functools.cached_property
    def declared(self) -> dict[str, Any]:
        """The values that steppers declare in `fn.defaults`; the last of two wins."""
        return {k: v for stepper in self for k, v in stepper.declared.items()}

    @functools.cached_property
    def agreed(self) -> dict[str, int | float]:
        """Numbers that signatures give as defaults, where all that give one give the same.

        Switches (bool) and None stay with their functions: two steppers may well differ in
        `dampening`.
        """
        given: dict[str, list[Any]] = {}
        for stepper in self:
            for name, value in stepper.optional.items():
                given.setdefault(name, []).append(value)
        return {
            name: values[0]
            for name, values in given.items()
            if type(values[0]) in (int, float) and all(v == values[0] for v in values)
        }

    def __str__(self) -> str:
        return " -> ".join(stepper.name for stepper in self)


def read_chain(cbs: Any) -> Chain:
    """The chain in `cbs`: a stepper, or nested lists of them.

    Raises ChainError for an empty chain, for None, for a class, and for what is no callable.
    """
    chain = Chain(read_stepper(fn) for fn in _flat(cbs))
    if not chain:
        raise ChainError("cbs holds no stepper; give at least one, for example [sgd_step].")
    return chain


def _flat(cbs: Any) -> Iterator[Callable[..., Any]]:
    if isinstance(cbs, type):
        raise ChainError(
            f"a stepper was expected, but {cbs.__name__} is a class; give a function or an instance"
            " whose __call__(p, ...) takes the step."
        )
    if callable(cbs):
        yield cbs
    elif isinstance(cbs, Iterable) and not isinstance(cbs, str | bytes | Mapping):
        for item in cbs:
            yield from _flat(item)
    else:
        raise ChainError(
            f"a stepper was expected, but {cbs!r} cannot be called; give a function"
            " f(p, lr, **kwargs) or a list of such functions."
        )


def read_stepper(fn: Callable[..., Any]) -> Stepper:
    """What the signature of `fn` says; its first argument is the parameter, whatever its name."""
    name = _name(fn)
    try:
        arguments = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # a builtin that tells nothing: it is given everything
        return Stepper(fn, name, (), {}, _declared(fn), takes_all=True)
    if not arguments or arguments[0].kind in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    ):
        raise ChainError(
            f"stepper {name} takes no parameter; its first argument must be the tensor, as in"
            " f(p, lr, **kwargs)."
        )
    rest = [] if arguments[0].kind is inspect.Parameter.VAR_POSITIONAL else arguments[1:]
    for argument in rest:
        if argument.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise ChainError(
                f"stepper {name} takes {argument.name} by position only, but steppers are called"
                " by keyword; remove the / from its signature."
            )
    keyword = [
        a
        for a in rest
        if a.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    ]
    return Stepper(
        fn,
        name,
        required=tuple(a.name for a in keyword if a.default is inspect.Parameter.empty),
        optional={a.name: a.default for a in keyword if a.default is not inspect.Parameter.empty},
        declared=_declared(fn),
        takes_all=any(a.kind is inspect.Parameter.VAR_KEYWORD for a in arguments),
    )


def _name(fn: Callable[..., Any]) -> str:
    if isinstance(fn, functools.partial):
        return f"{_name(fn.func)}({', '.join(f'{k}={v!r}' for k, v in fn.keywords.items())})"
    return str(getattr(fn, "__name__", type(fn).__name__))


def _declared(fn: Callable[..., Any]) -> dict[str, Any]:
    """`fn.defaults`, also through a partial, less what the partial has given already."""
    if isinstance(fn, functools.partial):
        return {k: v for k, v in _declared(fn.func).items() if k not in fn.keywords}
    declared = getattr(fn, "defaults", None)
    return dict(declared) if isinstance(declared, Mapping) else {}


def with_lr_mult(chain: Chain) -> Chain:
    """`chain` at lr·lr_mult for its lr, with `lr_mult` as a further hyper-parameter.

    So the groups of one optimizer share one lr and one schedule of it, each at its own ratio.
    """
    return Chain(
        read_stepper(_scaled(s)) if s.takes_all or "lr" in (*s.required, *s.optional) else s
        for s in chain
    )


def _scaled(stepper: Stepper) -> Callable[..., Any]:
    fn = stepper.fn

    def at_its_rate(p: Tensor, *, lr_mult: float, **known: Any) -> Any:
        if "lr" in known:
            known["lr"] = known["lr"] * lr_mult
        return fn(p, **known)

    arguments = list(inspect.signature(fn).parameters.values())
    ratio = inspect.Parameter("lr_mult", inspect.Parameter.KEYWORD_ONLY)
    arguments.insert(len(arguments) - stepper.takes_all, ratio)
    functools.update_wrapper(at_its_rate, fn)
    at_its_rate.__name__ = stepper.name
    at_its_rate.__dict__["defaults"] = stepper.declared
    at_its_rate.__dict__["__signature__"] = inspect.Signature(arguments)
    return at_its_rate


@dataclass
class Rehearsal:
    """What one run of a chain on a stand-in has shown."""

    given: dict[str, int] = field(default_factory=dict)  # stat -> place of its first giver
    stats: dict[str, Any] = field(default_factory=dict)  # what the stand-in was left with
    starved: list[tuple[int, str]] = field(default_factory=list)  # place, name it went without
    all_known: bool = True  # False once a stepper has raised: what it gives cannot be told


def rehearse(chain: Chain, hypers: Mapping[str, Any], p: Tensor) -> Rehearsal:
    """Run `chain` once on the stand-in `p`, which it changes.

    A stepper that raises for its own reasons (a shape that it needs, an attribute of the real
    parameter) is no fault of the chain.
    """
    seen = Rehearsal()
    with undisturbed(), torch.no_grad():
        for place, stepper in enumerate(chain):
            known = {**hypers, **seen.stats}
            lacking = [name for name in stepper.required if name not in known]
            if seen.all_known:
                seen.starved += [(place, name) for name in lacking]
            if not all(name in chain.agreed for name in lacking):
                continue
            try:
                out = stepper(p, known | {name: chain.agreed[name] for name in lacking})
            except Exception:  # its own reasons; the real step will show them if they are real
                seen.all_known = False
                continue
            if isinstance(out, dict):
                seen.stats.update(out)
                for name in out:
                    seen.given.setdefault(name, place)
    # A number in another stepper's signature is a value for a hyper-parameter, but not for a stat.
    seen.starved = [s for s in seen.starved if s[1] in seen.given or s[1] not in chain.agreed]
    return seen


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the random number generators, and keep warnings from being given twice.

    torch tells once a process that `p.data.add_(-lr, g)` is an old spelling. Here that spelling is
    welcome, so it is as well that the rehearsal meets it first.
    """
    gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=gpus), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def stand_ins(params: Sequence[Tensor]) -> list[Tensor]:
    """One small parameter with a gradient for each kind (shape up to 2, dtype) in `params`."""
    kinds = {(tuple(min(size, 2) for size in p.shape), p.dtype): None for p in params}
    return [stand_in(shape, dtype) for shape, dtype in kinds or {((2,), torch.float32): None}]


def stand_in(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A parameter of ones with a gradient of ones, on the CPU."""
    with torch.inference_mode(False):
        values = torch.ones(shape, dtype=dtype, device="cpu")
        p = torch.nn.Parameter(values, requires_grad=dtype.is_floating_point or dtype.is_complex)
        p.grad = torch.ones(shape, dtype=dtype, device="cpu")
    return p


def check_chain(chain: Chain, hypers: Mapping[str, Any], params: Sequence[Tensor]) -> Rehearsal:
    """Rehearse `chain` for every kind of parameter in `params`; the union of what was seen.

    Raises ChainError, naming stepper, argument and mend, if a stepper needs a stat that nothing
    before it gives or a hyper-parameter that has no value, if the stat is given only later, or if
    a stat has the name of a hyper-parameter.
    """
    union = Rehearsal()
    for p in stand_ins(params):
        seen = rehearse(chain, hypers, p)
        for place, name in seen.starved[:1]:
            raise ChainError(_hunger(chain, place, name, seen.given))
        for name in seen.given.keys() & hypers.keys():
            raise ChainError(
                f"stepper {chain[seen.given[name]].name} returns {name} as state, but {name} is"
                f" also given as a hyper-parameter ({hypers[name]!r}), so one would hide the other;"
                " rename the state, or give its first value as a default in the signature."
            )
        union.given |= seen.given
        union.all_known &= seen.all_known
    return union


def _hunger(chain: Chain, place: int, name: str, given: Mapping[str, int]) -> str:
    """The sentence for a stepper that needs `name` and does not get it."""
    who = chain[place].name
    if given.get(name, place) > place:
        giver = chain[given[name]].name
        return (
            f"stepper {who} needs {name}, which {giver} returns only later in the chain; move"
            f" {giver} before {who}."
        )
    if name in _USUAL_SOURCE:
        giver = _USUAL_SOURCE[name]
        return (
            f"stepper {who} needs {name}, but no stepper before it returns that; put {giver}, or"
            f" your own stepper that returns {{{name!r}: ...}}, before {who}."
        )
    return (
        f"stepper {who} needs {name}, but it is no hyper-parameter with a value and no stepper"
        f" before it returns it; give the optimizer {name}=..., or put a stepper that returns"
        f" {{{name!r}: ...}} before {who}."
    )


def check_names(chain: Chain, names: Iterable[str], given_to: str) -> None:
    """Raise ChainError for a hyper-parameter in `names` that no stepper takes."""
    for name in names:
        if name not in chain.names:
            raise ChainError(
                f"{given_to} was given {name}, but no stepper of the chain ({chain}) takes it;"
                f" {nearest(name, chain.names)}"
            )
