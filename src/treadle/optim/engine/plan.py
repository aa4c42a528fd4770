"""Which parameters may take one launch together, found out anew whenever something has changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from treadle.optim.chain import Chain
from treadle.optim.engine.bucket import Bucket, Stats, strides
from treadle.optim.engine.record import PLAIN
from treadle.optim.engine.spread import Spread, spread_as
from treadle.optim.engine.tape import FLOATS, Kind, Type
from treadle.optim.engine.walk import same_objects, same_values
from treadle.optim.groups import Group, Hypers
from treadle.shards import alike, is_sharded, local

State = MutableMapping[Tensor, Stats]
Flags = Mapping[Tensor, Mapping[str, Any]]
Ready = Callable[[Group], list[Tensor]]

TENSORS = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


class Plan:
    """The parameters of an optimizer that are ready, in buckets, and the loose ones.

    Loose are those that only the reference engine steps: of another kind of tensor, with a layout
    that differs between parameter, gradient and stats, or with memory that is another's, too.

    Attributes:
        is_spread: whether any of them is a DTensor, so that sums are to be taken over processes.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        chains: Sequence[Chain],
        views: Sequence[Hypers],
        state: State,
        flags: Flags,
        ready: Ready,
        refused: Collection[int],
        by_shape: Collection[int],
    ) -> None:
        work = [ready(group) for group in groups]
        self.buckets: list[Bucket] = []
        self.loose: list[tuple[Chain, Hypers, list[Tensor]]] = []
        stats = {p: state.setdefault(p, {}) for params in work for p in params}
        shared = _sharing(stats)
        for group, chain, hypers, params in zip(groups, chains, views, work, strict=True):
            sorted_: dict[Any, list[Tensor]] = {}
            loose: list[Tensor] = []
            whole = id(chain) in refused or has_tensors(hypers)
            for p in params:
                key = (
                    None
                    if whole or p in shared
                    else _key(p, stats[p], flags.get(p, {}), id(chain) in by_shape)
                )
                (loose if key is None else sorted_.setdefault(key, [])).append(p)
            for (kind, *_), mine in sorted_.items():
                flagged = flags.get(mine[0], {})
                of_mine = [stats[p] for p in mine]
                common = chain, group, hypers, flagged, kind.kind
                make = Spread if is_sharded(mine[0]) else Bucket
                self.buckets.append(make(*common, mine, of_mine))
            if loose:
                self.loose.append((chain, hypers, loose))
        self.is_spread = any(is_sharded(p) for params in work for p in params)
        # What `holds` compares with.
        self._groups = [(group, list(group["params"]), list(group)) for group in groups]
        self._chains = list(chains)
        self._state, self._stats = state, list(state.values())
        self._flags = {p: dict(given) for p, given in flags.items()}
        self._flagged = list(flags)
        ready_ids = {id(p) for params in work for p in params}
        self._idle = [p for group in groups for p in group["params"] if id(p) not in ready_ids]

    def holds(
        self,
        groups: Sequence[Group],
        chains: Sequence[Chain],
        state: State,
        flags: Flags,
        ready: Ready,
    ) -> bool:
        """Whether nothing has changed since that this plan was made from."""
        if len(groups) != len(self._groups) or state is not self._state:
            return False
        if not same_objects(chains, self._chains):
            return False
        for group, (known, params, keys) in zip(groups, self._groups, strict=True):
            if (
                group is not known
                or list(group) != keys
                or not same_objects(group["params"], params)
            ):
                return False
        if not same_values(state, self._stats):
            return False
        if (flags or self._flagged) and not self._has_flags(flags):
            return False
        for p in self._idle:
            if p.grad is not None and (p.requires_grad or not isinstance(p, torch.nn.Parameter)):
                return False
        if self.loose and {id(p) for _, _, params in self.loose for p in params} - {
            id(p) for group in groups for p in ready(group)
        }:
            return False
        return all(bucket.fresh() for bucket in self.buckets)

    def _has_flags(self, flags: Flags) -> bool:
        return same_objects(list(flags), self._flagged) and (
            list(flags.values()) == list(self._flags.values())
        )


def has_tensors(hypers: Hypers) -> bool:
    """Whether a hyper-parameter is a tensor, whose value the recorder does not read."""
    return any(isinstance(value, Tensor) for value in hypers.values())


class _ByKey:
    """A kind that hashes by what it says."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.key = kind.dtype, kind.device, kind.shape, tuple(sorted(_spelled(kind)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByKey) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _spelled(kind: Kind) -> list[tuple[str, str, bool]]:
    return [(name, str(t.dtype), t.full) for name, t in kind.stats.items()]


def _key(p: Tensor, stats: Stats, flags: Mapping[str, Any], by_shape: bool) -> Any:
    """What the parameters of a bucket must share; None if `p` is loose."""
    g, whole, how = p.grad, p, None
    if is_sharded(p):
        if g is None or not alike(g, p):
            return None
        p, g, how = local(p), local(g), spread_as(p)
    if type(p) not in TENSORS or type(g) is not Tensor or not _alike(p, g):
        return None
    if p.dtype not in FLOATS or g.dtype != p.dtype or not dense(p):
        return None
    if p.numel() == 0 and how is None:
        return None
    types, numbers = dict[str, Type](), list[tuple[str, type, Any]]()
    for name, value in stats.items():
        if isinstance(value, Tensor):
            full = value.shape == whole.shape
            if full and how is not None:
                if not alike(value, whole):
                    return None
                value = local(value)
            if type(value) is not Tensor or value.dtype not in FLOATS or value.device != p.device:
                return None
            if not (_alike(p, value) if full else value.dim() == 0):
                return None
            types[name] = Type(value.dtype, full)
        elif isinstance(value, PLAIN):
            numbers.append((name, type(value), value))
        else:
            return None
    kind = Kind(p.dtype, p.device, whole.shape if by_shape or p.dim() == 0 else None, types)
    given = tuple((name, type(v), v) for name, v in flags.items())
    if any(not isinstance(v, PLAIN) for _, _, v in given):
        return None
    return _ByKey(kind), tuple(numbers), given, p.is_contiguous(), how


def _alike(p: Tensor, t: Tensor) -> bool:
    """Whether the entries of `t` lie in the order of those of `p`."""
    return (
        t.layout is torch.strided
        and t.device == p.device
        and t.shape == p.shape
        and strides(t) == strides(p)
        and not (t.is_conj() or t.is_neg())
    )


def dense(p: Tensor) -> bool:
    """Whether the entries fill a stretch of memory, in whatever order, each once."""
    expected = 1
    for stride, size in sorted(zip(p.stride(), p.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _sharing(stats: Mapping[Tensor, Stats]) -> set[Tensor]:
    """The parameters of which some memory is a second tensor's, too."""
    spans: list[tuple[int, int, Tensor]] = []
    for p, mine in stats.items():
        for t in (p, p.grad, *mine.values()):
            t = local(t)
            if type(t) in TENSORS and t.layout is torch.strided and t.numel():
                start = t.data_ptr() if t.device.type != "meta" else 0
                reach = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
                spans.append((start, start + (reach + 1) * t.element_size(), p))
    spans.sort(key=lambda span: span[:2])
    found: set[Tensor] = set()
    end, owner = 0, None
    for start, stop, p in spans:
        if start < end and owner is not None:
            found |= {p, owner}
        if stop > end:
            end, owner = stop, p
    return found
