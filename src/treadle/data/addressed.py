"""Torch's random numbers with an address, for code that knows nothing of addresses.

Within `addressed(draws)` whatever torch would draw from a global generator it draws from one that
is started from the address, in this thread alone. That holds for operations called from Python,
from C++ and from compiled TorchScript: they are caught where torch hands them to their kernels, by
what their schemas say of them, not by a list of names. (What `torch.compile` has fused into one
kernel is not seen.)

The global generators neither move nor matter. Python's `random` and NumPy's generators cannot be
redirected for one thread: `other_source` finds functions that use them, so that they are refused.
"""

from __future__ import annotations

import dis
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType, TracebackType
from typing import Any

import numpy as np
import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

from treadle.data.draws import Draws
from treadle.errors import UsageError

__all__ = ["addressed", "middles", "other_source"]


def addressed(draws: Draws | None) -> AbstractContextManager[Any]:
    """A context in which torch draws this one sample's numbers; for None, always the same ones.

    `draws` holds one sample and names the stream. Tensors on a GPU are drawn there, from a
    generator of their own with the same start: the numbers differ from the CPU's.

    >>> draws = Draws(seed=1, epoch=0, samples=np.array([7]), stream="item/Erase/0")
    >>> with addressed(draws):
    ...     first = torch.rand(3)
    >>> with addressed(draws):
    ...     bool((torch.rand(3) == first).all())
    True
    """
    if draws is None:
        return _Addressed(0)
    if len(draws) != 1:
        raise UsageError(f"addressed() got the draws of {len(draws)} samples; expected one sample.")
    return _Addressed(int(draws.uniform()[0, 0] * 2**53))  # all bits that the number has


def middles() -> AbstractContextManager[Any]:
    """A context in which a random whole number is the middle of its range.

    >>> with middles():
    ...     torch.randint(0, 9, (2,)).tolist()
    [4, 4]
    """
    return _Middles()


class _Mode(TorchDispatchMode):
    """A mode of this thread alone.

    Torch's own entry also sets flags for the whole process, by which `torch.compile` decides
    whether to compile: entered from several threads they are left set, and a training that runs
    meanwhile would not be compiled.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch wraps each operation once more, at five times the cost

    def __enter__(self) -> _Mode:
        _push_mode(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _pop_mode()


class _Addressed(_Mode):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        drawing = _drawing(func)
        given = kwargs or {}
        if drawing is None or not drawing.draws(args, given):
            return func(*args, **given)
        device = _device(args, given)
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return drawing.operation(*args, **{**given, "generator": self.generators[device]})


class _Middles(_Mode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.randint.low or func is torch.ops.aten.randint.default:
            low, high, size = args if len(args) == 3 else (0, *args)
            return torch.full(size, (low + high - 1) // 2, dtype=torch.int64)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class _Drawing:
    """An operation that may draw, as it takes a generator if it has such a form."""

    operation: OpOverload
    names: tuple[str, ...]

    def draws(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Does a call draw from a global generator? Raises if it does so and cannot be helped."""
        given = dict(zip(self.names, args, strict=False)) | kwargs
        if "generator" in self.names:
            return given.get("generator") is None
        chance = any(given.get(name) for name in ("p", "dropout", "dropout_p"))
        if chance and given.get("train") is not False:
            raise UsageError(
                f"{self.operation} draws random numbers and takes no generator: they can have no "
                "address. Switch its dropout off, or leave the transform out."
            )
        return False


@cache
def _drawing(operation: Any) -> _Drawing | None:
    """How `operation` draws; None if it never does."""
    if not isinstance(operation, OpOverload):
        return None
    arguments = _arguments(operation)
    if "generator" in arguments:
        return _Drawing(operation, tuple(arguments))
    if torch.Tag.nondeterministic_seeded not in operation.tags:
        return None
    packet = operation.overloadpacket
    for name in packet.overloads():
        sibling = getattr(packet, name)
        theirs = _arguments(sibling)
        names = tuple(theirs)
        if theirs.pop("generator", None) and theirs == arguments:
            return _Drawing(sibling, names)
    return _Drawing(operation, tuple(arguments))


def _arguments(operation: OpOverload) -> dict[str, str]:
    return {a.name: str(a.type) for a in operation._schema.arguments}


def _device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Where a call draws."""
    if named := kwargs.get("device"):
        device = torch.device(named)
        # "cuda" is the current one of several, and must not be another start of the same numbers
        alone = device.type == "cpu" or device.index is not None
        return device if alone else torch.empty(0, device=device).device
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    return tensors[0].device if tensors else torch.device("cpu")


def other_source(function: Callable[..., Any]) -> str | None:
    """What draws outside torch in a function, a method, or an object's methods; None if nothing.

    It reads their code, and that of the functions of the same module that are named there.

    >>> other_source(lambda x: x + random.random())
    "Python's random"
    """
    waiting, seen = list(_functions(function)), set()
    while waiting:
        current = waiting.pop()
        seen.add(current)
        for value in _named(current):
            if _is_or_is_of(value, random, random.random):
                return "Python's random"
            # numpy loads its own only when it is first named, and that takes a while
            if "numpy.random" in sys.modules and _is_or_is_of(value, np.random, np.random.rand):
                return "numpy.random"
            near = isinstance(value, FunctionType) and value.__module__ == current.__module__
            if near and value not in seen:
                waiting.append(value)
    return None


def _is_or_is_of(value: object, module: ModuleType, method: Any) -> bool:
    """Whether it is the module, or bound to the generator that the module's methods share."""
    owner = getattr(value, "__self__", None)
    return value is module or (owner is not None and owner is method.__self__)


_LOADS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLOSURE"}
_TRUSTED = {"builtins", "abc", "torch", "torchvision", "numpy", "PIL"}


def _functions(function: Callable[..., Any]) -> Iterator[FunctionType]:
    """The functions, written in Python, that a call may run."""
    if isinstance(function, partial):
        function = function.func
    if isinstance(function, MethodType):
        function = function.__func__
    if isinstance(function, FunctionType):
        yield function
        return
    for kind in type(function).__mro__:
        if kind.__module__.split(".")[0] not in _TRUSTED:
            for name, value in vars(kind).items():
                value = getattr(value, "__func__", value)  # of a static or class method
                if isinstance(value, FunctionType) and name != "__init__":
                    yield value


def _named(function: FunctionType) -> Iterator[Any]:
    """What the names in a function's code stand for, as far as modules are followed."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    names = {**function.__globals__}
    for name, cell in cells:
        with suppress(ValueError):  # a variable that has no value yet
            names[name] = cell.cell_contents
    waiting = [function.__code__]
    while waiting:
        code = waiting.pop()
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        value: Any = None
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                value = getattr(value, step.argval, None) if isinstance(value, ModuleType) else None
            elif step.opname == "IMPORT_NAME":
                value = sys.modules.get(step.argval)
            else:
                value = names.get(step.argval) if step.opname in _LOADS else None
            yield value
