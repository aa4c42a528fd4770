"""The rest of what a stand-in has in common with a tensor, made from the tables of `ops`.

For every operation `name` there are the method, the method in place (`name_`) and torch's function;
then the operators, and the names that torch has for things that go by another name here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from treadle.optim.engine.ops import ELEMENTWISE, LOGIC
from treadle.optim.engine.tape import FLOATS, NotRecorded, OnMatrices
from treadle.optim.engine.value import FUNCTIONS, Value, operand, where

__all__ = ["Value"]


def _zeros_like(x: Value, *, dtype: Any = None, **kwargs: Any) -> Value:
    tape = x._tape
    if kwargs.pop("memory_format", torch.preserve_format) is not torch.preserve_format or any(
        v for v in kwargs.values()
    ):
        tape.fail("it makes a tensor with a memory format, a device or a gradient of its own")
    if dtype is not None and dtype not in FLOATS:
        tape.fail(f"it makes a tensor of {dtype}")
    place = tape.add("zeros" if dtype is None else f"zeros:{dtype}", x._id)
    out = Value(tape, place)
    tape.zeros.append((out, place))
    return out


def _ones_like(x: Value, **kwargs: Any) -> Value:
    return _zeros_like(x, **kwargs).fill_(1.0)


def _full_like(x: Value, fill_value: Any, **kwargs: Any) -> Value:
    return _zeros_like(x, **kwargs).fill_(fill_value)


def _plain(name: str, arity: int) -> Callable[..., Value]:
    """A method that writes down `name` with its operands."""

    def unary(self: Value) -> Value:
        code = self._tape.code
        code.append((name, self._id))
        return Value(self._tape, len(code) - 1)

    def binary(self: Value, other: Any) -> Value:
        tape = self._tape
        return Value(tape, tape.add(name, self._id, operand(tape, other)))

    return unary if arity == 1 else binary


def _in_place(name: str) -> Callable[..., Value]:
    """The method `name_`: the method `name`, and the result written into the tensor."""
    method = getattr(Value, name)

    def in_place(self: Value, *args: Any, **kwargs: Any) -> Value:
        return self.copy_(method(self, *args, **kwargs))

    return in_place


def _refused(what: str, kind: type[NotRecorded] = NotRecorded) -> Callable[..., Any]:
    """A method that ends the recording."""

    def refuse(self: Value, *args: Any, **kwargs: Any) -> Any:
        self._tape.fail(what, kind)

    return refuse


_WRITTEN_OUT = set(vars(Value))
for _name, _op in {**ELEMENTWISE, **LOGIC}.items():
    if _name not in _WRITTEN_OUT and _op.arity <= 2 and _name not in ("rsub", "rpow"):
        setattr(Value, _name, _plain(_name, _op.arity))
_METHODS = [name for name in (*ELEMENTWISE, *LOGIC) if hasattr(Value, name)]
_METHODS += ["clamp", "where", "masked_fill"]
for _name in list(_METHODS):
    if f"{_name}_" not in _WRITTEN_OUT and _name != "where":
        setattr(Value, f"{_name}_", _in_place(_name))
    if _name != "where":
        _METHODS.append(f"{_name}_")
_METHODS += [*"add_ mul_ sum mean amax amin max min norm copy_ fill_ zero_ clone detach".split()]

_OPERATORS = {
    "add": "add", "radd": "add", "iadd": "add_", "sub": "sub", "isub": "sub_",
    "mul": "mul", "rmul": "mul", "imul": "mul_", "truediv": "div", "itruediv": "div_",
    "pow": "pow", "ipow": "pow_", "neg": "neg", "abs": "abs",
    "gt": "gt", "ge": "ge", "lt": "lt", "le": "le", "eq": "eq", "ne": "ne",
    "and": "logical_and", "or": "logical_or", "xor": "logical_xor", "invert": "logical_not",
}  # fmt: skip
for _operator, _name in _OPERATORS.items():
    setattr(Value, f"__{_operator}__", getattr(Value, _name))
for _name in "bool float int index len iter getitem setitem contains array".split():
    setattr(Value, f"__{_name}__", _refused("it reads a tensor's value on the host"))
# Each recording has new stand-ins, so what a stepper keeps by parameter would be lost.
setattr(Value, "__hash__", _refused("it uses a tensor as a key; let it return what is to be kept"))  # noqa: B010
for _name in ("matmul", "rmatmul"):
    setattr(Value, f"__{_name}__", _refused("it multiplies matrices", OnMatrices))
for _name in ("item", "tolist", "numpy", "cpu"):
    setattr(Value, _name, _refused(f"it reads a tensor's value on the host by .{_name}()"))

FUNCTIONS |= {
    **{name: getattr(Value, name) for name in _METHODS},
    **{f"__{name}__": getattr(Value, f"__{name}__") for name in _OPERATORS},
    "where": where,
    "zeros_like": _zeros_like,
    "empty_like": _zeros_like,
    "ones_like": _ones_like,
    "full_like": _full_like,
    "softplus": Value.softplus,
    "rsub": Value.__rsub__,
    "subtract": Value.sub,
    "multiply": Value.mul,
    "divide": Value.div,
    "true_divide": Value.div,
    "negative": Value.neg,
    "absolute": Value.abs,
    "clip": Value.clamp,
    "linalg_vector_norm": Value.norm,
    "linalg_norm": Value.norm,
    "greater": Value.gt,
    "less": Value.lt,
    "is_floating_point": Value.is_floating_point,
}
for _name in ("subtract", "multiply", "divide", "true_divide", "negative", "absolute", "clip"):
    setattr(Value, _name, FUNCTIONS[_name])
    setattr(Value, f"{_name}_", _in_place(_name))
