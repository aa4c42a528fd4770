"""The model compiled for training."""

from __future__ import annotations

from typing import Any

import torch

from treadle.callbacks.table import no_table
from treadle.errors import UsageError, nearest
from treadle.loop.events import Callback


class CompileCallback(Callback):
    """Compiles the model in place when a fit starts. What is saved keeps its names.

    After the first epoch of a fit it prints how many graphs were compiled in it, if any, and what
    made torch compile one again, such as a last batch of another size.

    Args:
        undo: whether the model runs as before again when the fit has ended, however it ends.
        **options: those of `torch.compile`: `backend`, `mode`, `dynamic`, `fullgraph`, ...

    Attributes:
        note: what was printed; empty if nothing was compiled.

    Raises:
        UsageError: when a fit starts, if there is no backend of that name.

    >>> faster = CompileCallback(mode="reduce-overhead")
    """

    order = 60  # the note comes below the row of the epoch

    def __init__(self, undo: bool = False, **options: Any) -> None:
        self.undo, self.options, self.note = undo, options, ""

    def before_fit(self) -> None:
        from torch._dynamo.utils import get_compilation_metrics

        backend = self.options.get("backend", "inductor")
        if isinstance(backend, str):
            known = torch.compiler.list_backends(exclude_tags=())
            if backend not in known:
                raise UsageError(f"CompileCallback(backend={backend!r}): {nearest(backend, known)}")
        if self.undo:
            before = self.model._compiled_call_impl
            self.scope.callback(setattr, self.model, "_compiled_call_impl", before)
        self.model.compile(**self.options)
        self.earlier = get_compilation_metrics()
        self.note = ""

    def after_epoch(self) -> None:
        if self.epoch == 0:
            self.note = _note(self.earlier)
            if self.note and self.learn.logger is not no_table:
                print(self.note, flush=True)


def _note(earlier: list[Any]) -> str:
    """What torch compiled since it had compiled `earlier`."""
    from torch._dynamo.utils import get_compilation_metrics

    new = [one for one in get_compilation_metrics() if one not in earlier]
    if not new:
        return ""
    note = f"Compiled {len(new)} graph{'s' * (len(new) > 1)} in the first epoch"
    # A reason starts with the number of the graph that did not serve: "0/1: ...".
    reasons = [one.recompile_reason.partition(": ")[2] for one in new if one.recompile_reason]
    if reasons:
        note += f", {len(reasons)} of them anew: {'; '.join(map(str.strip, reasons))}"
    return f"{note}."
