"""Parameters that take one launch together: what they share, and the table of their addresses."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treadle.native import Kernel
from treadle.optim.chain import Chain
from treadle.optim.engine.ops import REDUCTIONS
from treadle.optim.engine.program import Program
from treadle.optim.engine.record import PLAIN
from treadle.optim.engine.tape import Kind, Type
from treadle.optim.engine.walk import set_in_all, walk
from treadle.optim.groups import Group, Hypers

Stats = dict[str, Any]

_CHUNK = 1 << 14  # entries that a thread takes through all operations before it looks for more
_ITEM = 1 << 13  # entries, at least, that are worth to be handed out
_ALONE = 1 << 15  # entries, at most, that one thread does faster than several
_SHORT = 1 << 16  # entries, at most, for which the GIL is kept

_requires_grad, _contiguous = attrgetter("requires_grad"), Tensor.is_contiguous


def _itself(t: Tensor) -> Tensor:
    return t


class Bucket:
    """Parameters of one group with the same kind, flags and numbers.

    What a step relies on is looked at in each step, by `fresh`, because nothing here is ours
    alone: autograd replaces gradients, a user may replace or clear stats, freeze a parameter, or
    move a model. `walk` does so in C; what it cannot tell, or without it, is asked in Python.
    """

    place = 0  # of this process among those that have other parts of the parameters

    # How the memory of a tensor is reached; `spread` has other ways.
    _part: Callable[[Tensor], Tensor] = staticmethod(_itself)
    _grad: Callable[[Tensor], Tensor] = attrgetter("grad")
    _address: Callable[[Tensor], int] = staticmethod(Tensor.data_ptr)

    def __init__(
        self,
        chain: Chain,
        group: Group,
        hypers: Hypers,
        flags: Mapping[str, Any],
        kind: Kind,
        params: list[Tensor],
        stats: list[Stats],
        scale: Tensor | None = None,
    ) -> None:
        self.chain, self.hypers, self.flags, self.kind = chain, hypers, flags, kind
        self.params, self.stats = params, stats
        self.tensors = kind.names
        self.numbers = [name for name in stats[0] if name not in kind.stats]
        self.launches: dict[Any, Callable[[Sequence[float]], None]] = {}  # by code
        self._group, self._names = group, list(hypers)
        self._width = len(stats[0])
        self._requires = list(map(_requires_grad, params))
        self.parts = list(map(self._part, params))
        self._columns = [[self._part(s[name]) for s in stats] for name in self.tensors]
        new = partial(torch.ones, dtype=torch.float64, device=kind.device)
        self.scale, self.norms = new(()) if scale is None else scale, new(len(params))
        self._contiguous = all(map(_contiguous, self.parts))
        self._strides = [strides(p) for p in self.parts]
        self._single = [p for p, part in zip(params, self.parts, strict=True) if part.numel() == 1]
        self._addresses = [list(map(Tensor.data_ptr, stream)) for stream in self.streams[:-1]]
        at = self.norms.data_ptr()
        self._addresses.append(list(range(at, at + 8 * len(params), 8)))
        self.table = array("Q", [a for column in self._addresses for a in column])
        at = self.table.buffer_info()[0]
        self._look = self._walk(at)
        self.layout = Layout([p.numel() for p in self.parts])

    def _walk(self, table: int) -> Callable[[], bool] | None:
        return walk(self.params, self.stats, self.tensors, self.numbers, table)

    @property
    def streams(self) -> list[list[Tensor]]:
        """The parameters, the gradients, the stats by name, what a guard keeps."""
        grads, scales = list(map(self._grad, self.params)), [self.scale] * len(self.params)
        return [self.parts, grads, *self._columns, scales, list(self.norms.unbind())]

    def known(self) -> dict[str, Any]:
        """What steppers know beside tensors: hyper-parameters, flags, stats that are numbers."""
        first = self.stats[0]
        group = self._group
        known = {name: group[name] for name in self._names}
        known.update(self.flags)
        for name in self.numbers:
            known[name] = first[name]
        return known

    def fresh(self) -> bool:
        """Whether all is as it was but for values, and for gradients of the same layout."""
        seen = (self._look is not None and self._look()) or self._seen_fresh()
        # The imaginary part of a conjugate is kept with the other sign. Strides tell such a
        # gradient from others, but for one entry there are none.
        return seen and not (self._single and any(self._grad(p).is_neg() for p in self._single))

    def _seen_fresh(self) -> bool:
        """`fresh`, asked in Python."""
        params, stats, n, address = self.params, self.stats, len(self.params), self._address
        try:
            if list(map(_requires_grad, params)) != self._requires:
                return False
            grads = list(map(self._grad, params))
            if list(map(address, params)) != self._addresses[0] or not self._fit(grads):
                return False
            # Gradients are not held: zero_grad is to free them.
            self.table[n : 2 * n] = array("Q", map(Tensor.data_ptr, grads))
            if list(map(len, stats)).count(self._width) != n:
                return False
            for name in self.numbers:
                values = [s[name] for s in stats]
                if not isinstance(values[0], PLAIN) or values.count(values[0]) != n:
                    return False
            for i, name in enumerate(self.tensors):
                # Two tensors at one address would both be alive, so this tells them apart.
                if list(map(address, [s[name] for s in stats])) != self._addresses[2 + i]:
                    return False
        except (AttributeError, KeyError, RuntimeError, TypeError):
            return False  # a gradient that is None or sparse, a stat that is gone
        return True

    def _fit(self, grads: Sequence[Tensor]) -> bool:
        if {g.dtype for g in grads} != {self.kind.dtype} or {*map(type, grads)} != {Tensor}:
            return False
        if self._contiguous:
            return all(map(_contiguous, grads))
        return [strides(g) for g in grads] == self._strides

    def separate_grads(self) -> bool:
        """Whether no two parameters have one gradient, so that it can be written."""
        n = len(self.params)
        return len(set(self.table[n : 2 * n])) == n

    def keep(self, numbers: Mapping[str, Any]) -> None:
        """Keep the stats that are numbers."""
        for name, value in numbers.items():
            set_in_all(self.stats, name, value)

    def extended(
        self, new: Mapping[str, Type], numbers: Mapping[str, Any], order: Sequence[str]
    ) -> Bucket:
        """This bucket after the stats `new` have been made, as zeros, and `numbers` kept."""
        for name in order:
            for p, part, s in zip(self.params, self.parts, self.stats, strict=True):
                if name in new:
                    like = p if new[name].full else part.new_empty(())
                    s[name] = torch.zeros_like(like, dtype=new[name].dtype, requires_grad=False)
                elif name in numbers:
                    s[name] = numbers[name]
        kind = replace(self.kind, stats={**self.kind.stats, **new})
        common = self.chain, self._group, self.hypers, self.flags
        return type(self)(*common, kind, self.params, self.stats, self.scale)

    def split(self) -> list[Bucket]:
        """One bucket for each shape."""
        by_shape: dict[torch.Size, tuple[list[Tensor], list[Stats]]] = {}
        for p, s in zip(self.params, self.stats, strict=True):
            params, stats = by_shape.setdefault(p.shape, ([], []))
            params.append(p)
            stats.append(s)
        return [
            type(self)(
                self.chain,
                self._group,
                self.hypers,
                self.flags,
                replace(self.kind, shape=shape),
                *both,
                self.scale,
            )
            for shape, both in by_shape.items()
        ]


def strides(t: Tensor) -> tuple[int, ...]:
    """The strides that tell where entries lie: those of axes with more than one of them."""
    return tuple(stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1)


class Layout:
    """How the entries of some parameters are handed out to threads. See `codegen_c`."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.total = sum(sizes)
        chunks: list[tuple[int, int, int]] = []
        first, items, weight = [], [0], 0
        for i, size in enumerate(sizes):
            first.append(len(chunks))
            for start in range(0, size, _CHUNK):
                length = min(_CHUNK, size - start)
                chunks.append((i, start, length))
                weight += length
                if weight >= _ITEM:
                    items.append(len(chunks))
                    weight = 0
        first.append(len(chunks))
        if items[-1] != len(chunks):
            items.append(len(chunks))
        self.chunk = np.array(chunks, np.int64)
        self.first = np.array(first, np.int64)
        self.item = np.array(items, np.int64)


class Launch:
    """A kernel with its work laid out: to call it takes its numbers."""

    def __init__(self, bucket: Bucket, program: Program, kernel: Kernel) -> None:
        layout = bucket.layout
        width = sum(line.name in REDUCTIONS for line in program.lines)
        part = np.zeros(width * len(layout.chunk))
        total = np.zeros(width * len(bucket.params))
        arrays = layout.item, layout.chunk, layout.first
        # These own the memory that the work points into.
        self._owned = (bucket.table, part, total, *arrays)
        self._work = np.zeros(9 + program.numbers, np.int64)
        self._threads = 0
        self._work[1:9] = [
            len(layout.item) - 1,
            len(bucket.params),
            *(x.ctypes.data for x in arrays),
            bucket.table.buffer_info()[0],
            part.ctypes.data,
            total.ctypes.data,
        ]
        self._address = int(self._work.ctypes.data)
        self._pack = struct.Struct(f"{program.numbers}d").pack_into
        self._memory = self._work.data.cast("B")
        self._alone = layout.total <= _ALONE
        self._run = kernel.short if layout.total <= _SHORT else kernel.long
        self._work[0] = 1

    def __call__(self, numbers: Sequence[float]) -> None:
        self._pack(self._memory, 72, *numbers)
        if not self._alone:
            threads = torch.get_num_threads()
            if threads != self._threads:
                self._work[0] = self._threads = threads
        self._run(self._address)
