"""Parameters of which each process has a part, stepped whole: for what looks beyond an entry.

So chains that multiply matrices run on DTensors, and all that cannot be recorded. Every process
gathers the parameter, its gradient and its stats, does the same with them, and keeps its part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from treadle.optim.chain import Chain
from treadle.optim.engine.eager import parts
from treadle.optim.engine.loose import Stats, Undo
from treadle.shards import Box, alike, box_of, cut, is_sharded, local


def run_gathered(
    run: Callable[..., Any],
    chain: Chain,
    params: Sequence[Tensor],
    hypers: Mapping[str, Any],
    state: MutableMapping[Tensor, Stats],
    flags: Mapping[Tensor, Mapping[str, Any]],
) -> Undo:
    """`run(chain, params, hypers, state, flags)` on the whole of each DTensor in `params`.

    A few are whole at a time. Stats of the shape of their parameter are kept as it is, others by
    each process. Returns as `run_guarded`. Needs the other processes.
    """
    undo: Undo = []
    for some in parts([p.numel() for p in params]):
        mine = params[some]
        full, theirs = _gathered(mine, [state.setdefault(p, {}) for p in mine])
        of = {q: flags.get(p, {}) for p, q in zip(mine, full, strict=True)}
        run(chain, full, hypers, theirs, of)
        for p, q in zip(mine, full, strict=True):
            stats, here = state[p], box_of(p)
            undo.append((stats, {k: v for k, v in stats.items() if not isinstance(v, Tensor)}))
            local(p).copy_(here.of(q.data))
            for name, value in theirs[q].items():
                _keep(stats, name, value, p, here)
    return undo


def _gathered(
    params: Sequence[Tensor], stats: Sequence[Stats]
) -> tuple[list[Tensor], dict[Tensor, Stats]]:
    """The parameters whole, with their gradients, and their stats."""
    tensors = [p.detach() for p in params] + [p.grad for p in params]
    tensors += [x for mine in stats for x in mine.values() if isinstance(x, Tensor)]
    whole = _whole(tensors)
    full: list[Tensor] = [nn.Parameter(next(whole), p.requires_grad) for p in params]
    for p, q in zip(params, full, strict=True):
        marks = {name: x for name, x in vars(p).items() if not name.startswith("_")}
        q.__dict__.update(marks)  # what a user has written on it
        q.grad = next(whole)
    found = [
        {name: next(whole) if isinstance(x, Tensor) else x for name, x in mine.items()}
        for mine in stats
    ]
    return full, dict(zip(full, found, strict=True))


def _whole(tensors: Sequence[Any]) -> Iterator[Tensor]:
    """All of each tensor. All are asked for before the first is waited for."""
    from torch.distributed.tensor import Replicate

    asked = [
        t.redistribute(placements=[Replicate()] * t.device_mesh.ndim, async_op=True)
        if is_sharded(t)
        else t
        for t in tensors
    ]
    for t in asked:
        found = local(t)
        yield found.wait() if hasattr(found, "wait") else found


def _keep(stats: Stats, name: str, value: Any, p: Tensor, here: Box) -> None:
    """Keep a stat of the whole of `p`, of which this process has the part `here`."""
    if not isinstance(value, Tensor) or value.shape != p.shape:
        stats[name] = value
        return
    old = stats.get(name)
    if isinstance(old, Tensor) and alike(old, p) and old.dtype == value.dtype:
        local(old).copy_(here.of(value))
    else:
        stats[name] = cut(value, p)
