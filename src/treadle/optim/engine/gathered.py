"""Parameters of which each process has a part, stepped whole: for what looks beyond an entry.

So chains that multiply matrices run on DTensors, and all that cannot be recorded. Every process
gathers the parameter, its gradient and its stats, does the same with them, and keeps its part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from treadle.optim.chain import Chain
from treadle.optim.engine.eager import parts
from treadle.optim.engine.loose import Stats, Undo
from treadle.shards import alike, cut, local, whole


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
        full = [_gathered(p) for p in mine]
        theirs = {
            q: {name: _whole(x) for name, x in state.setdefault(p, {}).items()}
            for p, q in zip(mine, full, strict=True)
        }
        of = {q: flags.get(p, {}) for p, q in zip(mine, full, strict=True)}
        run(chain, full, hypers, theirs, of)
        for p, q in zip(mine, full, strict=True):
            stats = state[p]
            undo.append((stats, {k: v for k, v in stats.items() if not isinstance(v, Tensor)}))
            local(p).copy_(local(cut(q.data, p)))
            for name, value in theirs[q].items():
                _keep(stats, name, value, p)
    return undo


def _gathered(p: Tensor) -> Tensor:
    q = nn.Parameter(whole(p), requires_grad=p.requires_grad)
    marks = {name: x for name, x in vars(p).items() if not name.startswith("_")}
    q.__dict__.update(marks)  # what a user has written on it
    assert p.grad is not None
    q.grad = whole(p.grad)
    return q


def _whole(value: Any) -> Any:
    return whole(value) if isinstance(value, Tensor) else value


def _keep(stats: Stats, name: str, value: Any, p: Tensor) -> None:
    if not isinstance(value, Tensor) or value.shape != p.shape:
        stats[name] = value
        return
    part, old = cut(value, p), stats.get(name)
    if isinstance(old, Tensor) and alike(old, p) and old.dtype == part.dtype:
        local(old).copy_(local(part))
    else:
        stats[name] = part
