"""Names that files may use.

What a program writes to be read again (an export, a config) says how to make its parts: the name of
a class or function, and arguments. A name stands for what the running program has registered under
it, and for nothing else: a file cannot make Python import, find or run anything that the program
did not put into this table.

How does an object know the arguments it was made with? `register` notes them as they are given.
That is one way for all: attributes differ from arguments in many classes, and a module of the
user's often keeps none. An object that learns from data says what would make it as it is now, by a
method `as_arguments() -> dict`.

    @register
    class Small(nn.Module):
        def __init__(self, width): ...

    described(Small(8))   # {"make": "Small", "args": [8], "kwargs": {}}
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

from treadle.errors import DataError, UsageError, nearest

__all__ = ["described", "known_names", "register", "remember", "restored"]

T = TypeVar("T")
Made = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""What made an object, a class or a function, and the arguments."""

_NOTE = "_made_by"
_BY_NAME: dict[str, Any] = {}
_NAMES: dict[Any, str] = {}
_MOST_BYTES = 400_000  # of a tensor among the arguments: weights have a file of their own


@overload
def register(thing: T, /) -> T: ...
@overload
def register(*, name: str | None = None) -> Callable[[T], T]: ...
def register(thing: Any = None, /, *, name: str | None = None) -> Any:
    """Let files name a class or a function: `@register`, or `@register(name="small")`.

    Instances of a registered class remember the arguments that they were made with, and so does
    what a registered function returns if that can be called, as models, losses and transforms can.
    A definition that is run again, as in a notebook's cell, takes the place of the one before.

    Raises:
        UsageError: for what is neither a class nor a function, and for a name that something of
            another module has.

    >>> @register(name="doctest.Shift")
    ... class Shift:
    ...     def __init__(self, by):
    ...         self.by = by
    >>> described(Shift(by=2))
    {'make': 'doctest.Shift', 'args': [], 'kwargs': {'by': 2}}
    >>> restored(described(Shift(by=2))).by
    2
    """
    if thing is None:
        return lambda later: _add(later, name or _own_name(later))
    return _add(thing, _own_name(thing))


def _add(thing: Any, name: str) -> Any:
    if not callable(thing) or not _own_name(thing):
        raise UsageError(
            f"register got {thing!r}; expected a class or a function, for example "
            "`@treadle.register` on the line before `def` or `class`."
        )
    before = _BY_NAME.get(name)
    if before is not None and _place(before) != _place(thing):
        raise UsageError(
            f"{name!r} is registered already, as {_place(before)}; register {_place(thing)} under "
            f"another name: `@treadle.register(name=...)`."
        )
    kept = _noting_class(thing) if isinstance(thing, type) else _noting_function(thing)
    _BY_NAME[name] = kept
    _NAMES[thing] = _NAMES[kept] = name
    return kept


def _own_name(thing: Any) -> str:
    return str(getattr(thing, "__name__", ""))


def _place(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _noting_class(cls: type) -> type:
    init = cls.__init__  # type: ignore[misc]

    @functools.wraps(init)
    def noting_init(self: Any, *args: Any, **kwargs: Any) -> None:
        if _NOTE not in self.__dict__:  # a subclass was here first
            remember(self, type(self), *args, **kwargs)
        init(self, *args, **kwargs)

    cls.__init__ = noting_init  # type: ignore[misc]
    return cls


def _noting_function(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def noting(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        keeps = callable(result) and hasattr(result, "__dict__") and not isinstance(result, type)
        if keeps and not _is_from(result, noting):
            remember(result, noting, *args, **kwargs)
        return result

    return noting


def _is_from(result: Any, maker: Any) -> bool:
    note = _note_of(result)
    return note is not None and note[0] is maker


def _note_of(thing: Any) -> Made | None:
    note: Made | None = getattr(thing, "__dict__", {}).get(_NOTE)
    return note


def remember(thing: T, maker: Any, /, *args: Any, **kwargs: Any) -> T:
    """Note that `maker(*args, **kwargs)` makes `thing`; for a registered function whose own
    arguments are not the ones to make it by again. Returns `thing`."""
    object.__setattr__(thing, _NOTE, (maker, args, kwargs))  # past what modules and dataclasses do
    return thing


def known_names() -> list[str]:
    """The names that are registered, sorted."""
    return sorted(_BY_NAME)


# Writing


def described(thing: Any, where: str = "the object") -> Any:
    """How `restored` makes `thing` again, as plain JSON: registered names and arguments.

    Numbers, text, lists, tuples, dicts, sets, paths and small tensors are their own description;
    `functools.partial` of a registered function has one too. `where` names `thing` in errors.

    Raises:
        UsageError: for what is not registered, with the line to add.

    >>> described([1, ("a", None)])
    [1, {'tuple': ['a', None]}]
    """
    return _Describer(where).of(thing)


class _Describer:
    """Walks an object; `path` is what it is inside of, so that a circle is seen."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.path: list[int] = []

    def of(self, thing: Any) -> Any:
        if thing is None or isinstance(thing, bool):
            return thing
        for kind in (int, float, str):  # also NumPy's, and members of such enumerations
            if isinstance(thing, kind):
                return kind(thing) if kind is not str else str.__str__(thing)
        if id(thing) in self.path:
            raise UsageError(
                f"{self.where} was made from itself ({_shown(thing)}): a registered function got "
                "it as an argument and returned it; let the function make it instead."
            )
        self.path.append(id(thing))
        try:
            return self._inside(thing)
        finally:
            self.path.pop()

    def _inside(self, thing: Any) -> Any:
        if type(thing) is list:
            return [self.of(value) for value in thing]
        if type(thing) is tuple:
            return {"tuple": [self.of(value) for value in thing]}
        if type(thing) in (set, frozenset):
            return {"set": [self.of(value) for value in sorted(thing, key=repr)]}
        if isinstance(thing, dict):
            return {"dict": [[self.of(key), self.of(value)] for key, value in thing.items()]}
        if isinstance(thing, os.PathLike):
            return {"path": os.fsdecode(thing)}
        if isinstance(thing, functools.partial):
            return self._made("partial", thing.func, thing.args, thing.keywords)
        if hasattr(thing, "tolist") and hasattr(thing, "dtype"):
            return self._numbers(thing)
        if (name := _name_of(thing)) is not None:
            return {"name": name}
        return self._object(thing)

    def _object(self, thing: Any) -> Any:
        note = _note_of(thing)
        name = None if note is None else _name_of(note[0])
        if note is None or name is None:
            raise UsageError(_not_registered(thing, self.where))
        _, args, kwargs = note
        if hasattr(type(thing), "as_arguments"):
            args, kwargs = (), thing.as_arguments()
        return self._made("make", name, args, kwargs)

    def _made(self, key: str, maker: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return {
            key: maker if key == "make" else self.of(maker),
            "args": [self.of(value) for value in args],
            "kwargs": {name: self.of(value) for name, value in kwargs.items()},
        }

    def _numbers(self, thing: Any) -> Any:
        if (size := thing.nbytes) > _MOST_BYTES:
            raise UsageError(
                f"{self.where} has an argument of {size} bytes; an export keeps numbers of a "
                "module as its buffers or parameters (register_buffer), arguments are small."
            )
        values, of_numpy = thing.tolist(), type(thing).__module__ == "numpy"
        if of_numpy and not isinstance(values, list):
            return self.of(values)
        key = "array" if of_numpy else "tensor"
        return {key: values, "dtype": str(thing.dtype).removeprefix("torch.")}


def _name_of(thing: Any) -> str | None:
    try:
        return _NAMES.get(thing)
    except TypeError:  # not hashable, so no class or function
        return None


def _not_registered(thing: Any, where: str) -> str:
    if isinstance(thing, type) or not hasattr(type(thing), "state_dict"):
        of_user = thing if hasattr(thing, "__qualname__") else type(thing)
    else:
        of_user = type(thing)
    what = f"{where} holds {_shown(thing)}, which is not registered, so no file can name it"
    named = getattr(of_user, "__qualname__", "")
    if of_user.__module__.split(".")[0] in ("torch", "torchvision", "builtins"):
        return (
            f"{what}. Make it in a function of yours with `@treadle.register` on the line before "
            "`def`, in a file that is imported before loading."
        )
    if "<lambda>" in named:
        return (
            f"{what}. Write it as a function with a name, and put `@treadle.register` on the line "
            "before `def`, in a file that is imported before loading."
        )
    return (
        f"{what}. Put `@treadle.register` on the line before the definition of {named}, in a file "
        "that is imported before loading."
    )


def _shown(thing: Any) -> str:
    name = getattr(thing, "__qualname__", None)
    if name is None:
        kind = type(thing)
        plain = kind.__module__ in ("builtins", "__main__")
        return f"a {kind.__qualname__}" if plain else f"a {kind.__module__}.{kind.__qualname__}"
    return f"{thing.__module__}.{name}"


# Reading


def restored(json: Any, where: str = "the file") -> Any:
    """What `described` described, made anew by what is registered.

    Raises:
        DataError: for a name that is not registered, with the line to add, for what is no
            description, and where arguments do not suit.
    """
    if json is None or isinstance(json, bool | int | float | str):
        return json
    if isinstance(json, list):
        return [restored(value, where) for value in json]
    if isinstance(json, dict):
        for key, keys, read in _READERS:
            if key in json and json.keys() == keys:
                try:
                    return read(json, where)
                except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
                    said = " ".join(str(error).split())[:300]
                    raise DataError(
                        f"{where}: {key} {str(json[key])[:60]!r} cannot be made "
                        f"({type(error).__name__}: {said})."
                    ) from error
    raise DataError(f"{where} holds {str(json)[:60]!r}, which describes nothing.")


def _read_named(json: dict[str, Any], where: str) -> Any:
    return _look_up(json["name"], where)


def _look_up(name: Any, where: str) -> Any:
    if not isinstance(name, str):
        raise DataError(f"{where} has {str(name)[:60]!r} for a name; expected text.")
    if name not in _BY_NAME:
        near = nearest(name, known_names())
        raise DataError(
            f"{where} names {name[:100]!r}, which this program has not registered. Put "
            f"`@treadle.register` on the line before its definition, in a file that is imported "
            f"before loading; {near}"
        )
    return _BY_NAME[name]


def _arguments(json: dict[str, Any], where: str) -> tuple[list[Any], dict[str, Any]]:
    if not isinstance(json["args"], list) or not isinstance(json["kwargs"], dict):
        raise DataError(f"{where} has arguments that are no list and dict.")
    kwargs = {name: restored(value, where) for name, value in json["kwargs"].items()}
    return [restored(value, where) for value in json["args"]], kwargs


def _read_made(json: dict[str, Any], where: str) -> Any:
    maker = _look_up(json["make"], where)
    args, kwargs = _arguments(json, where)
    return maker(*args, **kwargs)


def _read_partial(json: dict[str, Any], where: str) -> Any:
    args, kwargs = _arguments(json, where)
    return functools.partial(restored(json["partial"], where), *args, **kwargs)


def _read_tuple(json: dict[str, Any], where: str) -> Any:
    return tuple(restored(_listed(json["tuple"]), where))


def _read_set(json: dict[str, Any], where: str) -> Any:
    return set(restored(_listed(json["set"]), where))


def _read_dict(json: dict[str, Any], where: str) -> Any:
    return {restored(key, where): restored(value, where) for key, value in _listed(json["dict"])}


def _read_path(json: dict[str, Any], where: str) -> Any:
    return Path(json["path"])


def _read_tensor(json: dict[str, Any], where: str) -> Any:
    import torch

    dtype = getattr(torch, str(json["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise DataError(f"{where} names {str(json['dtype'])[:40]!r} as a type of tensors.")
    return torch.tensor(json["tensor"], dtype=dtype)


def _read_array(json: dict[str, Any], where: str) -> Any:
    import numpy as np

    array = np.array(json["array"])
    if array.dtype.kind not in "biufU":
        raise DataError(f"{where} holds an array that is not of numbers or text.")
    return array.astype(np.dtype(str(json["dtype"])))


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a list was expected, not {type(value).__name__}")
    return value


Reading = Callable[[dict[str, Any], str], Any]
_READERS: list[tuple[str, set[str], Reading]] = [
    ("make", {"make", "args", "kwargs"}, _read_made),
    ("name", {"name"}, _read_named),
    ("partial", {"partial", "args", "kwargs"}, _read_partial),
    ("tuple", {"tuple"}, _read_tuple),
    ("set", {"set"}, _read_set),
    ("dict", {"dict"}, _read_dict),
    ("path", {"path"}, _read_path),
    ("tensor", {"tensor", "dtype"}, _read_tensor),
    ("array", {"array", "dtype"}, _read_array),
]
