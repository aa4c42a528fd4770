"""From Triton source to a launch on the device: loading it, and keeping the table up to date there.

Nothing of ours is kept on disk: Triton has a cache of what it has compiled, by content, of its own.
It reads a kernel's source as `inspect` finds it, so the module that is made here hands it out.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.abc import ExecutionLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType
from typing import Any

import numpy as np
import torch

from treadle.optim.engine.bucket import Bucket
from treadle.optim.engine.codegen_triton import CHUNK, WARPS, triton_source
from treadle.optim.engine.ops import REDUCTIONS
from treadle.optim.engine.program import Program

_OPTIONS: dict[str, Any] = {
    "num_warps": WARPS,
    # Rounding is part of the result: no contraction but the multiply-adds that are asked for.
    "enable_fp_fusion": False,
}
# Of the arrays that every kernel gets; see `codegen_triton`.
_TYPES = (*(torch.int64, torch.int32, torch.int64, torch.int64), torch.float64, torch.float64)

_refused: dict[str, str] = {}  # why, by source


class NoTriton(Exception):
    """Triton is not there, or does not take the source; the message is a clause."""


class _Loader(ExecutionLoader):
    """Makes a module of a text."""

    def __init__(self, source: str) -> None:
        self.source = source

    def get_source(self, fullname: str) -> str:
        return self.source

    def get_filename(self, fullname: str) -> str:
        return f"{fullname}.py"


def load(source: str) -> ModuleType:
    """The module of this source, made once. Raises NoTriton if Triton is not installed."""
    name = f"treadle_kernel_{hashlib.sha256(source.encode()).hexdigest()[:32]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_loader(name, _Loader(source))
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)  # where `inspect` looks for it
    try:
        spec.loader.exec_module(module)
    except ImportError:
        del sys.modules[name]
        raise NoTriton("Triton is not installed") from None
    return module


def compiled(source: str, numbers: int) -> list[tuple[Any, str]]:
    """The kernels of this source, for the device at hand, and what each is launched over.

    Raises NoTriton; a source that has been refused is not tried again.
    """
    if source in _refused:
        raise NoTriton(_refused[source])
    kernels: list[tuple[Any, str]] = load(source).KERNELS
    try:
        for kernel, _ in kernels:
            kernel.warmup(*_TYPES, 1, *[0.0] * numbers, grid=(1,), **_OPTIONS)
    except Exception as error:  # of Triton, of the assembler, of the C compiler that it may need
        _refused[source] = f"Triton does not compile it: {error}"
        raise NoTriton(_refused[source]) from error
    return kernels


class TritonLaunch:
    """Kernels with their work laid out on the device: to call it takes the numbers.

    Raises NoTriton where they cannot be had. They are compiled here, so that nothing stops a step
    that has begun.
    """

    def __init__(self, bucket: Bucket, program: Program) -> None:
        device, tensors = bucket.kind.device, len(bucket.params)
        self._device: AbstractContextManager[Any] = (
            torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        )
        with self._device:
            kernels = compiled(triton_source(program), program.numbers)
        sizes = np.array([p.numel() for p in bucket.parts], np.int64)
        counts = -(-sizes // CHUNK)
        owner = np.repeat(np.arange(tensors, dtype=np.int32), counts)
        first = np.concatenate([[0], np.cumsum(counts)])
        width = sum(line.name in REDUCTIONS for line in program.lines)
        part, total = (
            torch.zeros(width * rows, dtype=torch.float64, device=device)
            for rows in (len(owner), tensors)
        )
        self._host, self._known = bucket.table, b""
        self._address = torch.zeros(len(bucket.table), dtype=torch.int64, device=device)
        # These wait for the device, once and not in a step.
        arrays = [torch.from_numpy(x).to(device) for x in (owner, first, sizes)]
        self._work = self._address, *arrays, part, total, tensors
        grids = {"chunks": (len(owner),), "tensors": (tensors,)}
        self._launches = [kernel[grids[over]] for kernel, over in kernels if len(owner)]

    def __call__(self, numbers: Sequence[float]) -> None:
        with self._device:
            table = self._host.tobytes()
            if table != self._known:
                self._known = table
                self._refresh()
            for launch in self._launches:
                launch(*self._work, *numbers, **_OPTIONS)

    def _refresh(self) -> None:
        """Bring the addresses to the device, behind what is queued there.

        The copy is from pinned memory, so nothing waits for it; torch gives that memory to nobody
        else before it is done. On the CPU, where kernels are interpreted, a plain copy serves.
        """
        table = torch.frombuffer(self._host, dtype=torch.int64)
        pinned = table.pin_memory() if self._address.is_cuda else table
        self._address.copy_(pinned, non_blocking=True)
