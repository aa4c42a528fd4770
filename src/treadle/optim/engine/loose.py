"""A guard around what runs without a program: the chain sees copies, and they are written back.

So a guard means the same for every chain; here it costs a copy, of some parameters at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from treadle.optim.chain import Chain
from treadle.optim.engine.eager import parts
from treadle.optim.engine.guard import COMPENSATION, Guard
from treadle.optim.engine.rounding import SMALL, stochastic

Stats = dict[str, Any]
Undo = list[tuple[Stats, Stats]]


def run_guarded(
    run: Callable[..., None],
    chain: Chain,
    params: Sequence[Tensor],
    hypers: Mapping[str, Any],
    state: MutableMapping[Tensor, Stats],
    flags: Mapping[Tensor, Mapping[str, Any]],
    guard: Guard,
    scale: Tensor | None,
) -> Undo:
    """`run(chain, params, hypers, state, flags)` under `guard`, on gradients times `scale`.

    Returns stats with the numbers that they must have again if the step was left out.
    """
    undo: Undo = []
    seed = int(next(iter(guard.seeds(torch.bfloat16)), 0))
    for part in parts([p.numel() for p in params]):
        mine = params[part]
        copies = [_copy(p, state.setdefault(p, {}), guard, scale) for p in mine]
        theirs = {q: _copied(state[p], guard) for p, q in zip(mine, copies, strict=True)}
        of = {q: flags.get(p, {}) for p, q in zip(mine, copies, strict=True)}
        run(chain, copies, hypers, theirs, of)
        for i, (p, q) in enumerate(zip(mine, copies, strict=True), part.start):
            stats, new = state[p], theirs[q]
            undo.append((stats, {k: v for k, v in stats.items() if not isinstance(v, Tensor)}))
            if guard.rounding == "stochastic" and p.dtype in SMALL:
                q.data = stochastic(q.data, p.dtype, seed, i)
            elif guard.compensates(p.dtype):
                new[COMPENSATION] = (q.data - q.data.to(p.dtype)).to(p.dtype)
            _write_back(p, q.data, stats, new, scale if guard.masks else None)
    return undo


def _copy(p: Tensor, stats: Stats, guard: Guard, scale: Tensor | None) -> Tensor:
    """The parameter that the chain sees: in float32 if its new value is to be rounded with care."""
    wide = guard.rounding != "nearest" and p.dtype in SMALL
    dtype = torch.float32 if wide else p.dtype
    value = p.detach().to(dtype, copy=True)
    if guard.compensates(p.dtype) and COMPENSATION in stats:
        value += stats[COMPENSATION]
    q = nn.Parameter(value, requires_grad=p.requires_grad)
    q.__dict__.update(p.__dict__)  # what a user has written on it
    assert p.grad is not None
    grad = p.grad.detach().to(dtype, copy=True)
    if scale is not None:
        grad.mul_(scale.to(grad.device, grad.dtype))
        if guard.masks:  # then what comes of it is dropped; but some functions raise on a NaN
            grad = torch.where(scale.isnan().to(grad.device), 0.0, grad)
    q.grad = grad
    return q


def _copied(stats: Stats, guard: Guard) -> Stats:
    """The stats that the chain sees; those of 16 bits in float32 if the parameter is."""

    def copied(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        wide = guard.rounding != "nearest" and value.dtype in SMALL
        return value.to(torch.float32 if wide else value.dtype, copy=True)

    return {name: copied(value) for name, value in stats.items()}


def _write_back(p: Tensor, value: Tensor, stats: Stats, new: Stats, scale: Tensor | None) -> None:
    """Write what a chain has made of copies, if `scale` is no NaN; None: always."""

    def put(old: Tensor, t: Tensor) -> None:
        t = t.to(old.dtype)
        old.copy_(t if scale is None else torch.where(scale.isnan().to(old.device), old, t))

    put(p.data, value)
    for name, now in new.items():
        old = stats.get(name)
        if isinstance(old, Tensor) and isinstance(now, Tensor) and old.shape == now.shape:
            put(old, now)
        elif (
            scale is None
            or (name in stats and not isinstance(old, Tensor) and not isinstance(now, Tensor))
            or not bool(scale.isnan())  # a stat is new, and no late word could take it away
        ):
            stats[name] = now
