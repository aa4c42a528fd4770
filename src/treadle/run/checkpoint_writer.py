"""Checkpoints written while training goes on.

The training thread only copies: tensors into memory of the host that is kept for the next time, and
values into text. A thread of its own writes, hashes and flushes. One write is under way at most,
so the memory taken is that of one checkpoint. In a run of several processes the threads of all
write one checkpoint, and agree by a process group of their own.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor

from treadle.errors import UsageError
from treadle.run.checkpoint import Content, check_keeps, content, store
from treadle.run.durable import DiskFullError
from treadle.run.tensor_file import TensorFile
from treadle.run.together import beside
from treadle.world import World, world


class Writer:
    """Writes checkpoints into `folder`, one at a time, in a thread of its own.

    `keep_last` and `keep_best` are those of `write_checkpoint`. What goes wrong in a write is
    raised by the next `submit` or by `close`; with `on_full="go_on"` a full disk is a warning there
    and training goes on, with `"stop"` it is the DiskFullError.

    The processes of a run (`among`, by default all) each make one, at the same time, and `submit`
    alike: what goes wrong in one of them is raised in all.

    `last` is the checkpoint that got onto the disk last (None: none yet), `waited` the seconds, in
    all, that `submit` had to wait because the write before was not done, `skipped` how many
    checkpoints a full disk refused.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Writer(folder) as writer:
    ...         held = writer.submit(100, {"model": {"weight": torch.ones(3)}}, {"loop": {}})
    ...     writer.last.name
    'step-000100'
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        keep_last: int = 2,
        keep_best: int = 0,
        on_full: Literal["stop", "go_on"] = "stop",
        among: World | None = None,
    ):
        check_keeps(keep_last, keep_best)
        if on_full not in ("stop", "go_on"):
            raise UsageError(f'on_full is {on_full!r}; give "stop" or "go_on".')
        self.folder = Path(folder)
        self.keep_last, self.keep_best, self.on_full = keep_last, keep_best, on_full
        self.last: Path | None = None
        self.waited = 0.0
        self.skipped = 0
        self._among = beside(world() if among is None else among)
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def submit(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        values: Mapping[str, Any],
        *,
        score: float | None = None,
    ) -> float:
        """Copies what is to be written and returns while it is written; see `write_checkpoint`.

        Returns the seconds that the caller was held, waiting for the write before included. What
        was given may be changed at once; on a GPU, by work on the current stream.

        Raises UsageError for what cannot be stored, and what went wrong in the write before: then
        this checkpoint is not written.
        """
        start = time.perf_counter()
        self.wait()
        self.waited += time.perf_counter() - start
        given = content(step, tensors, values, score)
        copied, copies = self._copied(given)
        self._start(lambda: self._write(copied, copies))
        return time.perf_counter() - start

    def wait(self) -> None:
        """Waits until the write under way, if any, is on the disk. Raises what went wrong in it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if isinstance(error, DiskFullError) and self.on_full == "go_on":
            self.skipped += 1
            if self._among.is_main:
                warnings.warn(f"Training goes on without a checkpoint. {error}", stacklevel=3)
        elif error is not None:
            raise error

    def close(self) -> None:
        """Waits for the write under way and gives back the memory. Raises what went wrong in it."""
        try:
            self.wait()
        finally:
            self._buffers = {}

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"The last checkpoint was not written: {failure}")

    def _start(self, work: Callable[[], object]) -> None:
        def kept() -> None:
            try:
                work()
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=kept, name="treadle-checkpoint")
        self._thread.start()

    def _write(self, what: Content, copies: list[torch.cuda.Event]) -> None:
        for copy in copies:
            copy.synchronize()
        self.last = store(self.folder, what, self.keep_last, self.keep_best, self._among)

    def _copied(self, given: Content) -> tuple[Content, list[torch.cuda.Event]]:
        """The same in memory of the host, and what to wait for until it is there."""
        buffers: dict[tuple[str, str], Tensor] = {}
        parts: dict[str, TensorFile] = {}
        devices: set[torch.device] = set()
        for part, file in given.parts.items():
            for name, t in file.tensors.items():
                buffer = _buffer(t, self._buffers.get((part, name)))
                buffers[part, name] = buffer.copy_(t, non_blocking=t.is_cuda)
                devices |= {t.device} if t.is_cuda else set()
            parts[part] = replace(
                file, tensors={name: buffers[part, name] for name in file.tensors}
            )
        self._buffers = buffers
        return replace(given, parts=parts), [
            torch.cuda.current_stream(device).record_event() for device in devices
        ]


def _buffer(t: Tensor, before: Tensor | None) -> Tensor:
    """Memory of the host for a copy of `t`: that of the copy before, if it fits.

    New memory costs more than the copy, for the system hands it out page by page.
    """
    if before is not None and (before.shape, before.dtype) == (t.shape, t.dtype):
        return before
    return torch.empty_like(t, device="cpu", pin_memory=t.is_cuda)
