"""Stand-ins for tensors that write down on a tape what a stepper asks of them.

A `Value` stands for the parameter, its gradient, a stat, or the result of an operation. What is
computed in place (`add_`) gives the Value a new result to stand for, so an alias such as `p.data`
is simply the Value itself. What is read by the host (`bool`, `float`, `.item()`), and whatever is
not defined here, ends the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from treadle.optim.engine.ops import POWERS
from treadle.optim.engine.tape import FLOATS, NotRecorded, OnMatrices, ShapeAsked, Tape, Type, infer

MATRICES = frozenset(
    "reshape view flatten unsqueeze squeeze mT T t transpose permute matmul mm bmm addmm baddbmm"
    " einsum outer diag tril triu linalg_qr linalg_eigh linalg_svd svd".split()
)
FUNCTIONS: dict[str, Callable[..., Any]] = {}  # torch's by name, as methods; see `surface`
_NUMBERS = (int, float, np.integer, np.floating, np.bool_)


class Value:
    """A stand-in for a tensor, as a stepper sees it."""

    __slots__ = ("_id", "_tape", "grad")
    __array_ufunc__ = None  # a numpy number on the left leaves the operation to us

    grad: Any

    if TYPE_CHECKING:  # made by `surface`
        reciprocal: Callable[[], Value]
        maximum: Callable[[Value], Value]
        minimum: Callable[[Value], Value]
        neg: Callable[[], Value]
        abs: Callable[[], Value]
        gt: Callable[[Any], Value]
        lt: Callable[[Any], Value]

    def __init__(self, tape: Tape, id_: int | str) -> None:
        self._tape = tape
        self._id = id_

    # ---- arithmetic; the operations of the shipped steppers are written out for speed

    def mul(self, other: Any) -> Value:
        tape = self._tape
        code = tape.code
        if type(other) is float:
            tape.scalars.append(other)
            code.append(("mul", self._id, None))
        else:
            code.append(("mul", self._id, operand(tape, other)))
        return Value(tape, len(code) - 1)

    def mul_(self, other: Any) -> Value:
        tape = self._tape
        code = tape.code
        if type(other) is float:
            tape.scalars.append(other)
            code.append(("mul_", self._id, None))
        else:
            code.append(("mul_", self._id, operand(tape, other)))
        self._id = len(code) - 1
        return self

    def div(self, other: Any, *, rounding_mode: None = None) -> Value:
        tape = self._tape
        if rounding_mode is not None:
            tape.fail("it divides with a rounding mode")
        code = tape.code
        code.append(("div", self._id, operand(tape, other)))
        return Value(tape, len(code) - 1)

    def add(self, other: Any, second: Any = None, *, alpha: Any = None) -> Value:
        tape = self._tape
        if second is not None:  # the old spelling: p.add(-lr, g)
            other, alpha = second, other
        code, x = tape.code, operand(tape, other)
        if alpha is None:
            code.append(("add", self._id, x))
        else:
            code.append(("axpy", self._id, x, number(tape, alpha)))
        return Value(tape, len(code) - 1)

    def add_(self, other: Any, second: Any = None, *, alpha: Any = None) -> Value:
        tape = self._tape
        if second is not None:
            other, alpha = second, other
        code, x = tape.code, operand(tape, other)
        if alpha is None:
            code.append(("add_", self._id, x))
        else:
            code.append(("axpy_", self._id, x, number(tape, alpha)))
        self._id = len(code) - 1
        return self

    def sub(self, other: Any, second: Any = None, *, alpha: Any = None) -> Value:
        tape = self._tape
        if second is not None:
            other, alpha = second, other
        x = operand(tape, other)
        if alpha is None:
            return Value(tape, tape.add("sub", self._id, x))
        return Value(tape, tape.add("axpy", self._id, x, number(tape, -alpha)))

    def addcmul(self, a: Any, b: Any, c: Any = None, *, value: Any = 1.0) -> Value:
        tape = self._tape
        if c is not None:
            a, b, value = b, c, a
        code, x, y = tape.code, tensor(tape, a), tensor(tape, b)
        code.append(("addcmul", self._id, x, y, number(tape, value)))
        return Value(tape, len(code) - 1)

    def addcmul_(self, a: Any, b: Any, c: Any = None, *, value: Any = 1.0) -> Value:
        tape = self._tape
        if c is not None:
            a, b, value = b, c, a
        code, x, y = tape.code, tensor(tape, a), tensor(tape, b)
        code.append(("addcmul_", self._id, x, y, number(tape, value)))
        self._id = len(code) - 1
        return self

    def addcdiv(self, a: Any, b: Any, c: Any = None, *, value: Any = 1.0) -> Value:
        tape = self._tape
        if c is not None:
            a, b, value = b, c, a
        code, x, y = tape.code, tensor(tape, a), tensor(tape, b)
        code.append(("addcdiv", self._id, x, y, number(tape, value)))
        return Value(tape, len(code) - 1)

    def addcdiv_(self, a: Any, b: Any, c: Any = None, *, value: Any = 1.0) -> Value:
        tape = self._tape
        if c is not None:
            a, b, value = b, c, a
        code, x, y = tape.code, tensor(tape, a), tensor(tape, b)
        code.append(("addcdiv_", self._id, x, y, number(tape, value)))
        self._id = len(code) - 1
        return self

    def lerp(self, end: Any, weight: Any) -> Value:
        tape = self._tape
        return Value(tape, tape.add("lerp", self._id, tensor(tape, end), operand(tape, weight)))

    def pow(self, exponent: Any) -> Value:
        tape = self._tape
        if isinstance(exponent, _NUMBERS) and float(exponent) in POWERS:
            return Value(tape, tape.add(POWERS[float(exponent)], self._id))
        return Value(tape, tape.add("pow", self._id, operand(tape, exponent)))

    def __rtruediv__(self, other: Any) -> Value:
        return self.reciprocal().mul(other)  # as torch has it

    def __rsub__(self, other: Any) -> Value:
        return Value(self._tape, self._tape.add("rsub", self._id, operand(self._tape, other)))

    def __rpow__(self, base: Any) -> Value:
        return Value(self._tape, self._tape.add("rpow", self._id, operand(self._tape, base)))

    def __pos__(self) -> Value:
        return self

    def clamp(self, min: Any = None, max: Any = None) -> Value:
        tape, out = self._tape, self._id
        if min is None and max is None:
            tape.fail("it calls clamp without a bound")
        if min is not None:
            out = tape.add("clamp_min", out, operand(tape, min))
        if max is not None:
            out = tape.add("clamp_max", out, operand(tape, max))
        return Value(tape, out)

    def softplus(self, beta: Any = 1.0, threshold: Any = 20.0) -> Value:
        tape = self._tape
        entry = "softplus", self._id, number(tape, beta), number(tape, threshold)
        return Value(tape, tape.add(*entry))

    def where(self, condition: Any, other: Any) -> Value:
        return where(condition, self, other)

    def masked_fill(self, mask: Any, value: Any) -> Value:
        return where(mask, value, self)

    # ---- over the whole parameter

    def _reduce(self, name: str, axes: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Value:
        if any(a is not None for a in axes) or any(v is not None for v in kwargs.values()):
            self._tape.fail(f"it takes the {name} along an axis or in another dtype")
        return Value(self._tape, self._tape.add(name, self._id))

    def sum(self, *axes: Any, **kwargs: Any) -> Value:
        return self._reduce("sum", axes, kwargs)

    def mean(self, *axes: Any, **kwargs: Any) -> Value:
        return self._reduce("mean", axes, kwargs)

    def amax(self, *axes: Any, **kwargs: Any) -> Value:
        return self._reduce("amax", axes, kwargs)

    def amin(self, *axes: Any, **kwargs: Any) -> Value:
        return self._reduce("amin", axes, kwargs)

    def max(self, *others: Any) -> Value:
        if len(others) == 1 and type(others[0]) is Value:
            return self.maximum(others[0])
        return self._reduce("amax", others, {})

    def min(self, *others: Any) -> Value:
        if len(others) == 1 and type(others[0]) is Value:
            return self.minimum(others[0])
        return self._reduce("amin", others, {})

    def norm(self, p: Any = 2, *axes: Any, **kwargs: Any) -> Value:
        orders = {1: "norm1", 2: "norm2", float("inf"): "norminf", "fro": "norm2", None: "norm2"}
        p = kwargs.pop("ord", p)
        if p not in orders:
            self._tape.fail(f"it takes the norm of order {p}")
        return self._reduce(orders[p], axes, kwargs)

    # ---- copies and types

    def copy_(self, other: Any, non_blocking: bool = False) -> Value:
        tape = self._tape
        self._id = tape.add("to_", self._id, operand(tape, other))
        return self

    def fill_(self, value: Any) -> Value:
        return self.copy_(value)

    def zero_(self) -> Value:
        self._id = self._tape.add("zeros", self._id)
        return self

    def clone(self) -> Value:
        return Value(self._tape, self._id)

    def detach(self) -> Value:
        return self

    @property
    def data(self) -> Value:
        return self

    @data.setter
    def data(self, value: Any) -> None:
        if value is self:  # the end of `p.data -= step`
            return
        tape = self._tape
        operand(tape, value)
        if any(value is x for x in tape.inputs):
            tape.fail("it makes two tensors one by assigning to .data")
        self._id = tape.add("same", self._id, value._id)
        value._tape = Tape(tape.kind)  # from here on the two are one: to use it again is refused

    def to(self, *args: Any, **kwargs: Any) -> Value:
        wanted = args[0] if len(args) == 1 else kwargs.get("dtype")
        if type(wanted) is Value:
            wanted = wanted.dtype
        if wanted not in FLOATS or len(args) + len(kwargs) != 1:
            self._tape.fail("it calls .to with more than a dtype of float numbers")
        if wanted == self.dtype:
            return self
        return Value(self._tape, self._tape.add(f"cast:{wanted}", self._id))

    def type_as(self, other: Value) -> Value:
        return self.to(other.dtype)

    def float(self) -> Value:
        return self.to(torch.float32)

    def double(self) -> Value:
        return self.to(torch.float64)

    # ---- what is no computation

    @property
    def device(self) -> torch.device:
        return self._tape.kind.device

    @property
    def _type(self) -> Type:
        tape, id_ = self._tape, self._id
        if isinstance(id_, int) and id_ >= 0:
            return infer(tape.code, tape.kind)[id_]
        return tape.kind.type_of(id_)

    @property
    def dtype(self) -> torch.dtype:
        return self._type.dtype

    @property
    def shape(self) -> torch.Size:
        tape = self._tape
        if not self._type.full:
            return torch.Size(())
        if tape.kind.shape is None:
            tape.fail("it asks for the shape", ShapeAsked)
        return tape.kind.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, axis: int | None = None) -> Any:
        return self.shape if axis is None else self.shape[axis]

    def numel(self) -> int:
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        return self.dtype is not torch.bool

    def __getattr__(self, name: str) -> Any:
        self._tape.fail(f"it asks for .{name}", OnMatrices if name in MATRICES else NotRecorded)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        given = [*args, *(kwargs or {}).values()]
        tape = next(x._tape for x in _flat(given) if type(x) is Value)
        call = FUNCTIONS.get(name)
        if call is None or (type(args[0]) is not Value and call is not where):
            tape.fail(f"it calls {name}", OnMatrices if name in MATRICES else NotRecorded)
        return call(*args, **kwargs or {})


def _flat(items: Any) -> Any:
    for item in items:
        if isinstance(item, list | tuple):
            yield from _flat(item)
        else:
            yield item


def operand(tape: Tape, x: Any) -> int | str | None:
    """How the code names `x`: a Value of this tape, or a number."""
    if type(x) is float:
        tape.scalars.append(x)
        return None
    if type(x) is Value:
        if x._tape is tape:
            return x._id
        tape.fail("it uses a tensor that it has kept from elsewhere")
    if isinstance(x, _NUMBERS):
        tape.scalars.append(float(x))
        return None
    if isinstance(x, torch.Tensor):
        tape.fail("it uses a tensor that is neither the parameter nor its gradient nor its state")
    return tape.fail(f"it computes with a {type(x).__name__}")


def tensor(tape: Tape, x: Any) -> int | str:
    """How the code names the Value `x`."""
    if type(x) is Value and x._tape is tape:
        return x._id
    id_ = operand(tape, x)
    return tape.fail("it gives a number where a tensor is due") if id_ is None else id_


def number(tape: Tape, x: Any) -> int | str | None:
    """`operand` where torch takes no tensor."""
    if type(x) is float:
        tape.scalars.append(x)
        return None
    return (
        tape.fail("it gives a tensor where a number is due")
        if type(x) is Value
        else operand(tape, x)
    )


def where(condition: Any, input: Any, other: Any) -> Value:
    """torch.where, whichever of the three are stand-ins."""
    value = next(x for x in (condition, input, other) if type(x) is Value)
    tape: Tape = value._tape
    c = tensor(tape, condition)
    if (
        type(input) is not Value
        and type(other) is not Value
        and not (type(input) is float and type(other) is float)
    ):
        tape.fail("it calls where with two numbers that are no floats")
    return Value(tape, tape.add("where", c, operand(tape, input), operand(tape, other)))
