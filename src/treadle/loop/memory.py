"""When memory runs out: what was under way, with how much, what helps; and nothing stays held."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from treadle.errors import TreadleError
from treadle.interrupts import scoped
from treadle.loop.nested import map_tensors
from treadle.loop.training import TrainingLoop
from treadle.loop.window import samples_in


class OutOfMemoryError(TreadleError):
    """Memory ran out in a fit or a validation; says where, with which batch, and what helps.

    What is raised is also of the type that torch or Python raised: `torch.OutOfMemoryError`,
    `MemoryError` or `RuntimeError`, which is its `__cause__`.

    Attributes:
        phase: "forward", "backward", "step", "loading" (of a batch) or "between" (passes).
        training: whether it was in training; else in validation.
        batch_size: how many samples the batch has; None where none was there.
        peak: the most bytes that were allocated: on a GPU by torch, else by this process; None
            where the system does not tell.
    """

    phase: str
    training: bool
    batch_size: int | None
    peak: int | None


def _like(kind: type[Exception]) -> type[OutOfMemoryError]:
    return type("OutOfMemoryError", (OutOfMemoryError, kind), {"__module__": __name__})


_KINDS = {kind: _like(kind) for kind in (torch.OutOfMemoryError, MemoryError, RuntimeError)}
_SAID = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED", "bad_alloc")

# The function of the loop that an error came through, the innermost first.
_PHASES = {
    "_do_step": "step",
    "_do_backward": "backward",
    "_do_one_batch": "forward",
    "all_batches": "loading",
}
_NAMES = {
    "step": "in the optimizer's step",
    "backward": "in the backward pass",
    "forward": "in the forward pass",
    "loading": "while a batch was loaded",
    "between": "between two passes over the data",
}


@scoped
def memory_told(loop: TrainingLoop) -> Iterator[None]:
    """If memory runs out in the block, an `OutOfMemoryError` says what is known. Nothing then
    holds on to prediction, loss, gradients and activations, so that less can be tried at once."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemoryError) or not _is_out_of_memory(error):
            raise
        told = _explained(loop, error)
        _give_back(loop, error)
        raise told from error


def _is_out_of_memory(error: Exception) -> bool:
    named = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return named or any(said in str(error) for said in _SAID)


def _explained(loop: TrainingLoop, error: Exception) -> OutOfMemoryError:
    phase = _phase(error.__traceback__)
    at_hand = phase in ("step", "backward", "forward") and loop.xb
    n = samples_in(loop.xb) if at_hand else None
    batch = f" of batch {loop.iter} with {n} samples, input {_shapes(loop.xb)}" if at_hand else ""
    peak, told_peak = _peak(loop.device)
    where = f"epoch {loop.epoch}" if loop.training else "validation"
    said = str(error).strip().partition("\n")[0]
    kind = next(kind for kind in _KINDS if isinstance(error, kind))
    told = _KINDS[kind](
        f"memory ran out {_NAMES[phase]}{batch}, in {where}{told_peak}. "
        f"{_advice(phase, loop, n)} ({said})"
    )
    told.phase, told.training, told.batch_size, told.peak = phase, loop.training, n, peak
    return told


def _phase(trace: TracebackType | None) -> str:
    through = {
        frame.f_code.co_name
        for frame, _ in traceback.walk_tb(trace)
        if frame.f_globals.get("__name__") == TrainingLoop.__module__
    }
    return next((phase for name, phase in _PHASES.items() if name in through), "between")


def _shapes(batch: Any) -> str:
    shapes: list[str] = []
    map_tensors(lambda t: shapes.append(f"{'x'.join(map(str, t.shape))} {_dtype(t)}"), batch)
    return ", ".join(shapes)


def _dtype(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def _peak(device: torch.device | None) -> tuple[int | None, str]:
    if device is not None and device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        whole = torch.cuda.get_device_properties(device).total_memory
        return peak, f"; {_gb(peak)} were in use at the peak, of {_gb(whole)} on {device}"
    try:
        import resource
    except ImportError:  # not on Windows
        return None, ""
    units = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * units
    return peak, f"; this process had {_gb(peak)} at the peak"


def _gb(n: int) -> str:
    return f"{n / 1e9:.2f} GB"


def _advice(phase: str, loop: TrainingLoop, n: int | None) -> str:
    if phase == "step":
        return "An optimizer with fewer averages (SGD rather than Adam) needs less."
    if n is None:
        return "Smaller batches, fewer workers or a smaller cache need less."
    less = "mixed precision (to_bf16) and smaller inputs (Resize) need less, too"
    if not loop.training:
        return f"Half the batch (val_bs) needs about half; {less}."
    n_acc = n if loop.window is None else max(n, loop.window.n_acc)
    return (
        f"Half the batch needs about half, and takes the same steps with "
        f"GradientAccumulation(n_acc={n_acc}); {less}."
    )


def _give_back(loop: TrainingLoop, error: BaseException | None) -> None:
    loop.xb = loop.yb = ()
    loop.pred = loop.loss = None
    if loop.training and loop.opt is not None:
        loop._forget_gradients()
    for cb in loop.cbs:
        for name, value in list(vars(cb).items()):
            if name != "learn" and _has_graph(value):
                setattr(cb, name, None)
    while error is not None:
        lines = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        error.add_note(f"It came from\n{lines}")
        _cut(error.__traceback__)
        error = error.__cause__ or error.__context__


def _cut(trace: TracebackType | None) -> None:
    """A traceback holds what was in the variables of each call, so it is kept as text only."""
    while trace is not None:
        following, trace.tb_next = trace.tb_next, None
        trace = following


def _has_graph(value: Any) -> bool:
    found: list[bool] = []
    map_tensors(lambda t: found.append(t.grad_fn is not None), value)
    return any(found)
