"""Parameters of one shape stepped together: the chain runs once, on stacks, under torch.vmap.

This is for chains that multiply matrices, which no loop over entries can take. What is saved is
Python's time and the start of many small operations. Stacks are copies, and what has become of them
is written back when the whole chain has run; so what vmap refuses leaves everything as it was, and
those parameters go one by one.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.overrides import TorchFunctionMode

from treadle.optim.chain import Chain, undisturbed
from treadle.optim.engine.plan import TENSORS, dense
from treadle.optim.engine.record import PLAIN
from treadle.optim.engine.reference import run_chain

Stats = dict[str, Any]
Alike = tuple[Any, Stats, list[Tensor]]  # what they have in common, of that the numbers, and they

# Entries, stats included: of a parameter, and of all that is in a stack, so that it stays small
# beside the model. To copy large ones costs more than Python does: on the CPU, with one and two
# threads, Muon takes 0.2 to 0.3 of the time on 64 x 64, 0.5 to 0.9 on 128 x 128, 0.9 to 1.3 on
# 256 x 256, 1.4 on 768 x 768, and SOAP, which copies eight tensors, 0.8 on 32 x 32 and 0.9 to 1.2
# on 64 x 64. Elsewhere, where it costs more to start an operation, it has not been measured.
_CPU = 1 << 15, 1 << 20
_ELSEWHERE = 1 << 22, 1 << 24
_FEWEST = 6  # parameters: for fewer, vmap takes longer than it saves

# What vmap has no rule for but has one for its form out of place.
_OUT_OF_PLACE = frozenset(
    "addcdiv_ addcmul_ addmm_ clamp_ clip_ fmod_ hypot_ lerp_ negative_ pow_ remainder_ square_"
    " subtract_ tril_ triu_ xlogy_".split()
)
# What gives a tensor another shape: `p.data.t_()` leaves p as it is, but here the two are one.
_TURNS = frozenset(
    "as_strided_ detach_ resize_ resize_as_ set_ squeeze_ swapaxes_ swapdims_ t_ transpose_"
    " unsqueeze_".split()
)


_TRIALS = 2  # steps in which a stack is compared with what its parameters come to one by one
_NEVER = -1


class _Refused(Exception):
    """The parameters have to go one by one."""


def run_batched(
    chain: Chain,
    params: Sequence[Tensor],
    hypers: Mapping[str, Any],
    state: MutableMapping[Tensor, Stats],
    flags: Mapping[Tensor, Mapping[str, Any]],
) -> None:
    """What `run_chain` does, at once for parameters that are alike.

    Alike are those of one shape, dtype and device, with the same flags, the same numbers in their
    stats, and other stats of one shape and dtype. Matrix products may round differently in a stack.
    As in every engine but the reference one, a stepper is called once for all that go together.

    In the first two steps of a kind the same is done one by one, too, and compared: the second one
    shows whether a stepper keeps something by itself, out of sight. The stack's results stand in
    these steps as in later ones, so that a run that is resumed comes to the same.
    """
    trials: dict[Any, int] = vars(chain).setdefault("trials", {})  # passed, by kind; _NEVER again
    passed: set[Any] = set()
    left = dict.fromkeys(params)

    def one_by_one(some: Sequence[Tensor]) -> None:
        run_chain(chain, some, hypers, state, flags)
        for p in some:
            del left[p]

    for kind, numbers, mine in _alike(params, state, flags):
        known = {**hypers, **flags.get(mine[0], {})}
        for together in _stacks(mine, state):
            if trials.setdefault(kind, 0) == _NEVER:
                break
            on_trial = trials[kind] < _TRIALS
            stats = [state[p] for p in together]
            try:
                with _on_trial() if on_trial else nullcontext():
                    stack = _Stack(chain, together, stats, known, numbers)
            except Exception:  # one by one it will show who is at fault
                one_by_one([*left])
                trials[kind] = _NEVER  # that has raised nothing, so it was the stack
                return
            if on_trial:
                before = [p.detach().clone() for p in together]
                one_by_one(together)
                if not stack.agrees(before):
                    trials[kind] = _NEVER
                    break
            stack.write()
            passed.add(kind)
            for p in together:
                left.pop(p, None)
    one_by_one([*left])
    for kind in passed:
        if trials[kind] != _NEVER:
            trials[kind] += 1


def _alike(
    params: Sequence[Tensor],
    state: MutableMapping[Tensor, Stats],
    flags: Mapping[Tensor, Mapping[str, Any]],
) -> list[Alike]:
    """The parameters that may be in one stack, without those that may be in none."""
    keys: list[Any] = []  # one a parameter; None for one that may be in no stack
    memory: list[tuple[int, int, int]] = []  # first address, the one after the last, whose
    for i, p in enumerate(params):
        stats, given = state.setdefault(p, {}), flags.get(p, {})
        kind: list[Any] = []
        numbers: list[Any] = []
        fits = all(isinstance(x, PLAIN) for x in given.values())
        for name, x in (("", p), ("", p.grad), *stats.items()):
            if type(x) in TENSORS and x.layout is torch.strided:
                kind += name, x.shape, x.dtype, x.device
                start, whole = x.data_ptr(), x.is_contiguous() or dense(x)
                memory.append((start, start + (x.nbytes if whole else _reach(x)), i))
                fits &= whole and start > 0
            else:
                numbers += name, type(x), x
                fits &= isinstance(x, PLAIN)
        flagged = tuple((name, type(x), x) for name, x in given.items())
        keys.append(((tuple(kind), flagged), tuple(numbers)) if fits else None)
    for i in _sharing(memory):
        keys[i] = None
    found: dict[Any, list[Tensor]] = {}
    for p, key in zip(params, keys, strict=True):
        if key is not None:
            found.setdefault(key, []).append(p)
    return [
        (kind, dict(zip(x[::3], x[2::3], strict=True)), mine) for (kind, x), mine in found.items()
    ]


def _reach(t: Tensor) -> int:
    """The number of bytes from the first entry of `t` to the last."""
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return (last + 1) * t.element_size()


def _sharing(memory: list[tuple[int, int, int]]) -> set[int]:
    """Those that own a stretch of `memory` that lies in another's, too."""
    memory.sort()
    found: set[int] = set()
    end, owner = 0, -1
    for start, stop, i in memory:
        if start < end:
            found |= {i, owner}
        if stop > end:
            end, owner = stop, i
    return found


def _stacks(params: list[Tensor], state: Mapping[Tensor, Stats]) -> Iterator[list[Tensor]]:
    """`params` in stacks of about one size; none if they are as quick one by one."""
    p = params[0]
    largest, entries = _CPU if p.device.type == "cpu" else _ELSEWHERE
    kept = sum(x.numel() for x in state[p].values() if isinstance(x, Tensor))
    # In a first step nobody knows what will be kept; SOAP keeps the squares of both sides.
    one = p.numel() + (kept or max(p.shape, default=1) ** 2)
    if one > largest or len(params) < _FEWEST:
        return
    count = math.ceil(len(params) * one / entries)
    size = math.ceil(len(params) / count)
    for start in range(0, len(params), size):
        yield params[start : start + size]


@contextmanager
def _on_trial() -> Iterator[None]:
    """Refuse what draws random numbers or warns; vmap warns where it would only loop.

    torch's random numbers vmap refuses by itself.
    """
    with undisturbed(), warnings.catch_warnings():
        warnings.simplefilter("error")
        before = random.getstate(), repr(np.random.get_state())
        yield
        if (random.getstate(), repr(np.random.get_state())) != before:
            raise _Refused("a stepper draws random numbers")


class _Stack:
    """Copies of alike parameters after a step; what is raised on the way has changed nothing."""

    def __init__(
        self,
        chain: Chain,
        params: list[Tensor],
        stats: list[Stats],
        known: Mapping[str, Any],
        numbers: Mapping[str, Any],
    ) -> None:
        names = [name for name, x in stats[0].items() if isinstance(x, Tensor)]
        columns: list[list[Any]] = [params, [p.grad for p in params]]
        columns += [[mine[name] for mine in stats] for name in names]
        stacks = [torch.stack(column) for column in columns]
        versions = [stack._version for stack in stacks]
        self.stats, self.columns, self.stacks = stats, columns, stacks
        self.kept: Stats = {}
        made: dict[str, Tensor] = {}

        def run(p: Tensor, g: Tensor, *held: Tensor) -> tuple[Tensor, ...]:
            were = dict(zip(names, held, strict=True))
            now = {**numbers, **were}
            with _AsParameter(p, g) as parameter:
                for stepper in chain:
                    out = stepper(p, {**known, **now})
                    if isinstance(out, dict):
                        now.update(out)
                        self.kept.update(out)
            made.update(
                {
                    n: x
                    for n, x in self.kept.items()
                    if isinstance(x, Tensor) and x is not were.get(n)
                }
            )
            parameter.check(made.values())
            return tuple(made.values())

        self.made = dict(zip(made, torch.vmap(run)(*stacks), strict=True))
        self.written = [x._version != version for x, version in zip(stacks, versions, strict=True)]
        memory = [x.untyped_storage().data_ptr() for x in (*stacks, *self.made.values())]
        if len(set(memory)) < len(memory):
            raise _Refused("a stat is one tensor with something else")
        if not all(isinstance(x, (*PLAIN, Tensor)) for x in self.kept.values()):
            raise _Refused("a stat is neither a tensor nor a number")

    def agrees(self, before: Sequence[Tensor]) -> bool:
        """Whether the parameters, which were `before`, have come one by one to the same."""
        numbers = {name: x for name, x in self.kept.items() if not isinstance(x, Tensor)}
        return all(
            _near(was, p.detach(), ours) and all(kept.get(n) == x for n, x in numbers.items())
            for was, p, ours, kept in zip(
                before, self.columns[0], self.stacks[0], self.stats, strict=True
            )
        )

    def write(self) -> None:
        """Write it back to the parameters, their gradients and their stats."""
        for column, stack, written in zip(self.columns, self.stacks, self.written, strict=True):
            if written:
                torch._foreach_copy_(column, list(stack.unbind()))
        for name, x in self.kept.items():
            if name in self.made:
                _keep(self.stats, name, self.made[name].unbind())
            elif not isinstance(x, Tensor):
                for mine in self.stats:
                    mine[name] = x


def _near(was: Tensor, alone: Tensor, ours: Tensor) -> bool:
    """Whether two steps from `was` are the same but for how products of matrices are rounded."""
    was, alone, ours = (x.nan_to_num(0, 0, 0) for x in (was, alone, ours))
    step, size = (alone - was).abs().max(), alone.abs().max()
    return bool((alone - ours).abs().max() <= 0.05 * step + 2 * torch.finfo(was.dtype).eps * size)


def _keep(stats: list[Stats], name: str, values: Sequence[Tensor]) -> None:
    """Keep `values`, one a parameter: in the tensors that there are, if they fit."""
    old: list[Any] = [mine.get(name) for mine in stats]
    like = old[0]
    if isinstance(like, Tensor) and (like.shape, like.dtype) == (values[0].shape, values[0].dtype):
        torch._foreach_copy_(old, list(values))
        return
    for mine, value in zip(stats, values, strict=True):
        mine[name] = value.clone()


class _AsParameter(TorchFunctionMode):
    """While it is on, `p` has the gradient `g`, and `.data`, which vmap forbids, is the tensor.

    It also refuses what would not stay within the stack: to write to a tensor that all share, such
    as one that the stepper has from elsewhere.
    """

    def __init__(self, p: Tensor, g: Tensor) -> None:
        super().__init__()
        self._p, self._g = p, g
        self._gone: list[Any] = []  # assigned to .data, and so one with another tensor
        self._failure: Exception | None = None

    def check(self, made: Iterable[Tensor]) -> None:
        """Raise what a stepper has caught, and _Refused if a stat is one with another tensor."""
        if self._failure is not None:
            raise self._failure
        if any(x is gone for x in made for gone in self._gone):
            raise _Refused("a tensor assigned to .data is kept")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        try:
            return self._call(func, args, kwargs or {})
        except Exception as error:
            self._failure = self._failure or error
            raise

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self._gone and any(x is gone for x in args for gone in self._gone):
            raise _Refused("a tensor assigned to .data is used")
        name = func.__name__
        if name in ("__get__", "__set__"):
            attribute = func.__self__.__name__
            if attribute == "data":
                return args[0] if name == "__get__" else self._assign(*args)
            if attribute == "grad" and args[0] is self._p:
                if name == "__set__":
                    raise _Refused("the gradient is replaced")
                return self._g
        elif _writes(name) or "out" in kwargs:
            if name in _TURNS or "out" in kwargs or not is_batchedtensor(args[0]):
                raise _Refused("a tensor that all share is written to, or one is turned in place")
            if name in _OUT_OF_PLACE:
                return args[0].copy_(self._call(getattr(Tensor, name[:-1]), args, kwargs))
        _check_types(args)
        return func(*args, **kwargs)

    def _assign(self, t: Tensor, value: Tensor) -> None:
        if value is not t:  # it is at the end of `p.data -= x`
            alike = value.shape == t.shape and value.dtype == t.dtype
            if not alike or not is_batchedtensor(t):
                raise _Refused("what is assigned to .data is of another kind")
            t.copy_(value)
            self._gone.append(value)


def _check_types(args: tuple[Any, ...]) -> None:
    """Raise _Refused where vmap may take the dtype of a tensor without dimensions for the others'.

    It does in some functions, as in torch.where(x > 0, x, n) with x in bfloat16 and n in float32.
    """
    floats = [x for x in args if isinstance(x, Tensor) and x.is_floating_point()]
    if len({x.dtype for x in floats}) > 1 and any(x.dim() == 0 for x in floats):
        raise _Refused("dtypes are mixed with a tensor of no dimensions")


def _writes(name: str) -> bool:
    """Whether a function of this name changes its first argument."""
    if name.endswith("__"):
        return name == "__setitem__" or name.startswith("__i")
    return name.endswith("_")
