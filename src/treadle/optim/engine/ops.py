"""The elementwise operations that an engine knows, each as C, as Triton, and as a torch function.

In the C and Triton forms {0}, {1}, ... are the operands, in the type T that they are computed in;
{f} is the suffix of the C function for T ("f" for float). The forms round as torch's CPU kernels
do, so that results are equal to the last bit: there, a + alpha*b is one fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Op:
    """One operation: its number of operands, its text, and what computes it eagerly."""

    arity: int
    c: str
    triton: str
    eager: Callable[..., Any]
    foreach: str = ""  # the name in torch._foreach_*, if there is one
    gives_bool: bool = False


def _op(arity: int, c: str, eager: Callable[..., Any], triton: str = "", foreach: str = "") -> Op:
    return Op(arity, c, triton or c, eager, foreach)


def _test(c: str, eager: Callable[..., Any], triton: str = "") -> Op:
    return Op((c.count("{1}") and 2) or 1, c, triton or c, eager, "", gives_bool=True)


def _call(name: str, triton: str = "") -> Op:
    """A function that C's math.h and torch call by the same name."""
    return _op(1, f"{name}{{f}}({{0}})", getattr(torch, name), triton or f"libdevice.{name}({{0}})")


ELEMENTWISE = {
    "add": _op(2, "{0} + {1}", torch.add, foreach="add"),
    "axpy": _op(
        3, "FMA({1}, {2}, {0})", lambda a, b, alpha: torch.add(a, b, alpha=alpha), "{0} + {1} * {2}"
    ),
    "sub": _op(2, "{0} - {1}", torch.sub, foreach="sub"),
    "rsub": _op(2, "{1} - {0}", torch.rsub),
    "mul": _op(2, "{0} * {1}", torch.mul, foreach="mul"),
    "div": _op(2, "{0} / {1}", torch.div, foreach="div"),
    "addcmul": _op(
        4,
        "FMA({3} * {1}, {2}, {0})",
        lambda a, b, c, value: torch.addcmul(a, b, c, value=value),
        "{0} + {3} * {1} * {2}",
        "addcmul",
    ),
    "addcdiv": _op(
        4,
        "{0} + {3} * {1} / {2}",
        lambda a, b, c, value: torch.addcdiv(a, b, c, value=value),
        foreach="addcdiv",
    ),
    "lerp": _op(
        3,
        "({2} < 0.5f && {2} > -0.5f ? FMA({2}, {1} - {0}, {0}) : FMA({2} - 1, {1} - {0}, {1}))",
        torch.lerp,
        "tl.where(({2} < 0.5) & ({2} > -0.5), {0} + {2} * ({1} - {0}),"
        " {1} + ({2} - 1) * ({1} - {0}))",
    ),
    "pow": _op(2, "pow{f}({0}, {1})", torch.pow, "libdevice.pow({0}, {1})"),
    "rpow": _op(2, "pow{f}({1}, {0})", lambda a, b: torch.pow(b, a), "libdevice.pow({1}, {0})"),
    "square": _op(1, "{0} * {0}", torch.square),
    "cube": _op(1, "{0} * {0} * {0}", lambda a: a**3),
    "inverse_square": _op(1, "1 / ({0} * {0})", lambda a: a**-2, "1.0 / ({0} * {0})"),
    "sqrt": _op(1, "sqrt{f}({0})", torch.sqrt, "tl.sqrt_rn({0})", "sqrt"),
    "rsqrt": _op(1, "1 / sqrt{f}({0})", torch.rsqrt, "1.0 / tl.sqrt_rn({0})"),
    "reciprocal": _op(1, "1 / {0}", torch.reciprocal, "1.0 / {0}", "reciprocal"),
    "neg": _op(1, "-{0}", torch.neg, foreach="neg"),
    "abs": _op(1, "fabs{f}({0})", torch.abs, "tl.abs({0})", "abs"),
    "sign": _op(
        1,
        "(T)(({0} > 0) - ({0} < 0))",
        torch.sign,
        "tl.where({0} > 0, 1.0, 0.0) - tl.where({0} < 0, 1.0, 0.0)",
        "sign",
    ),
    "relu": _op(1, "({0} < 0 ? 0 : {0})", torch.relu, "tl.where({0} < 0, 0.0, {0})"),
    "exp": _call("exp", "tl.exp({0})"),
    "exp2": _call("exp2", "tl.exp2({0})"),
    "expm1": _call("expm1"),
    "log": _call("log", "tl.log({0})"),
    "log2": _call("log2", "tl.log2({0})"),
    "log10": _call("log10"),
    "log1p": _call("log1p"),
    "sin": _call("sin", "tl.sin({0})"),
    "cos": _call("cos", "tl.cos({0})"),
    "tanh": _call("tanh"),
    "atan": _call("atan"),
    "erf": _call("erf", "tl.erf({0})"),
    "floor": _call("floor", "tl.floor({0})"),
    "ceil": _call("ceil", "tl.ceil({0})"),
    "trunc": _call("trunc"),
    "round": _op(1, "rint{f}({0})", torch.round, "libdevice.rint({0})"),
    "sigmoid": _op(1, "1 / (1 + exp{f}(-{0}))", torch.sigmoid, "tl.sigmoid({0})"),
    "atan2": _op(2, "atan2{f}({0}, {1})", torch.atan2, "libdevice.atan2({0}, {1})"),
    "maximum": _op(
        2,
        "({0} != {0} || {0} > {1} ? {0} : {1})",
        torch.maximum,
        "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    ),
    "minimum": _op(
        2,
        "({0} != {0} || {0} < {1} ? {0} : {1})",
        torch.minimum,
        "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    ),
    "clamp_min": _op(
        2, "({0} < {1} ? {1} : {0})", torch.clamp_min, "tl.where({0} < {1}, {1}, {0})"
    ),
    "clamp_max": _op(
        2, "({0} > {1} ? {1} : {0})", torch.clamp_max, "tl.where({0} > {1}, {1}, {0})"
    ),
    "softplus": _op(
        3,
        "({0} * {1} > {2} ? {0} : log1p{f}(exp{f}({0} * {1})) / {1})",
        F.softplus,
        "tl.where({0} * {1} > {2}, {0}, libdevice.log1p(tl.exp({0} * {1})) / {1})",
    ),
    "gt": _test("{0} > {1}", torch.gt),
    "ge": _test("{0} >= {1}", torch.ge),
    "lt": _test("{0} < {1}", torch.lt),
    "le": _test("{0} <= {1}", torch.le),
    "eq": _test("{0} == {1}", torch.eq),
    "ne": _test("{0} != {1}", torch.ne),
    "isnan": _test("{0} != {0}", torch.isnan),
    "isfinite": _test("{0} - {0} == 0", torch.isfinite),
    "isinf": _test(
        "({0} == {0} && {0} - {0} != 0)", torch.isinf, "({0} == {0}) & ({0} - {0} != 0)"
    ),
}

# On truth values alone.
LOGIC = {
    "logical_and": _test("{0} & {1}", torch.logical_and),
    "logical_or": _test("{0} | {1}", torch.logical_or),
    "logical_xor": _test("{0} ^ {1}", torch.logical_xor),
    "logical_not": _test("!{0}", torch.logical_not, "~{0}"),
}

# The powers that torch computes without pow; a power is part of the code, not a number for it.
POWERS = {
    2.0: "square",
    3.0: "cube",
    0.5: "sqrt",
    -0.5: "rsqrt",
    -1.0: "reciprocal",
    -2.0: "inverse_square",
}


@dataclass(frozen=True)
class Reduction:
    """Over a whole parameter: what an entry x becomes, how two join, and what the total becomes.

    Totals are of type double; n is the number of entries.
    """

    term: str
    join: str  # "+" or "max"
    first: str
    last: str
    eager: Callable[[Any], Any]


REDUCTIONS = {
    "sum": Reduction("x", "+", "0", "t", torch.sum),
    "mean": Reduction("x", "+", "0", "t / n", torch.mean),
    "norm1": Reduction("fabs(x)", "+", "0", "t", lambda x: torch.linalg.vector_norm(x, 1)),
    "norm2": Reduction("x * x", "+", "0", "sqrt(t)", torch.linalg.vector_norm),
    "norminf": Reduction(
        "fabs(x)", "max", "0", "t", lambda x: torch.linalg.vector_norm(x, float("inf"))
    ),
    "amax": Reduction("x", "max", "-INFINITY", "t", torch.amax),
    "amin": Reduction("-x", "max", "-INFINITY", "-t", torch.amin),
}
