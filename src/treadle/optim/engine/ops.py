"""The elementwise operations that an engine knows, each as C, as Triton, and as a torch function.

In the C and Triton forms {0}, {1}, ... are the operands, in the type T that they are computed in;
{f} is the suffix of the C function for T ("f" for float), {div} and {sqrt} are Triton's functions
for T that round as IEEE 754 has it. The forms round as torch's CPU kernels do, so that results are
equal to the last bit: there, a + alpha*b is one fused multiply-add. Where that leaves a choice,
Triton's form is the function that torch's CUDA kernels call, from libdevice: Triton's own exp, log,
sin and the like are quick and rough in float32.
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


def _call(name: str) -> Op:
    """A function that C's math.h, libdevice and torch call by the same name."""
    return _op(1, f"{name}{{f}}({{0}})", getattr(torch, name), f"libdevice.{name}({{0}})")


ELEMENTWISE = {
    "add": _op(2, "{0} + {1}", torch.add, foreach="add"),
    "axpy": _op(
        3,
        "FMA({1}, {2}, {0})",
        lambda a, b, alpha: torch.add(a, b, alpha=alpha),
        "tl.fma({1}, {2}, {0})",
    ),
    "sub": _op(2, "{0} - {1}", torch.sub, foreach="sub"),
    "rsub": _op(2, "{1} - {0}", torch.rsub),
    "mul": _op(2, "{0} * {1}", torch.mul, foreach="mul"),
    "div": _op(2, "{0} / {1}", torch.div, "{div}({0}, {1})", "div"),
    "addcmul": _op(
        4,
        "FMA({3} * {1}, {2}, {0})",
        lambda a, b, c, value: torch.addcmul(a, b, c, value=value),
        "tl.fma({3} * {1}, {2}, {0})",
        "addcmul",
    ),
    "addcdiv": _op(
        4,
        "{0} + {3} * {1} / {2}",
        lambda a, b, c, value: torch.addcdiv(a, b, c, value=value),
        "{0} + {div}({3} * {1}, {2})",
        "addcdiv",
    ),
    "lerp": _op(
        3,
        "({2} < 0.5f && {2} > -0.5f ? FMA({2}, {1} - {0}, {0}) : FMA({2} - 1, {1} - {0}, {1}))",
        torch.lerp,
        "tl.where(({2} < 0.5) & ({2} > -0.5), tl.fma({2}, {1} - {0}, {0}),"
        " tl.fma({2} - 1, {1} - {0}, {1}))",
    ),
    "pow": _op(2, "pow{f}({0}, {1})", torch.pow, "libdevice.pow({0}, {1})"),
    "rpow": _op(2, "pow{f}({1}, {0})", lambda a, b: torch.pow(b, a), "libdevice.pow({1}, {0})"),
    "square": _op(1, "{0} * {0}", torch.square),
    "cube": _op(1, "{0} * {0} * {0}", lambda a: a**3),
    "inverse_square": _op(1, "1 / ({0} * {0})", lambda a: a**-2, "{div}(1.0, {0} * {0})"),
    "sqrt": _op(1, "sqrt{f}({0})", torch.sqrt, "{sqrt}({0})", "sqrt"),
    "rsqrt": _op(1, "1 / sqrt{f}({0})", torch.rsqrt, "{div}(1.0, {sqrt}({0}))"),
    "reciprocal": _op(1, "1 / {0}", torch.reciprocal, "{div}(1.0, {0})", "reciprocal"),
    "neg": _op(1, "-{0}", torch.neg, foreach="neg"),
    "abs": _op(1, "fabs{f}({0})", torch.abs, "tl.abs({0})", "abs"),
    "sign": _op(
        1,
        "(T)(({0} > 0) - ({0} < 0))",
        torch.sign,
        "({0} > 0).to({T}) - ({0} < 0).to({T})",
        "sign",
    ),
    "relu": _op(1, "({0} < 0 ? 0 : {0})", torch.relu, "tl.where({0} < 0, 0.0, {0})"),
    "exp": _call("exp"),
    "exp2": _call("exp2"),
    "expm1": _call("expm1"),
    "log": _call("log"),
    "log2": _call("log2"),
    "log10": _call("log10"),
    "log1p": _call("log1p"),
    "sin": _call("sin"),
    "cos": _call("cos"),
    "tanh": _call("tanh"),
    "atan": _call("atan"),
    "erf": _call("erf"),
    "floor": _call("floor"),
    "ceil": _call("ceil"),
    "trunc": _call("trunc"),
    "round": _op(1, "rint{f}({0})", torch.round, "libdevice.rint({0})"),
    "sigmoid": _op(
        1, "1 / (1 + exp{f}(-{0}))", torch.sigmoid, "{div}(1.0, 1.0 + libdevice.exp(-{0}))"
    ),
    "atan2": _op(2, "atan2{f}({0}, {1})", torch.atan2, "libdevice.atan2({0}, {1})"),
    "maximum": _op(
        2,
        "({0} != {0} || {0} > {1} ? {0} : {1})",
        torch.maximum,
        "tl.where(({0} != {0}) | ({0} > {1}), {0}, {1})",
    ),
    "minimum": _op(
        2,
        "({0} != {0} || {0} < {1} ? {0} : {1})",
        torch.minimum,
        "tl.where(({0} != {0}) | ({0} < {1}), {0}, {1})",
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
        "tl.where({0} * {1} > {2}, {0}, {div}(libdevice.log1p(libdevice.exp({0} * {1})), {1}))",
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
