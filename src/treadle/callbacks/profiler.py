"""Where the time of a training step goes."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.profiler import profile, schedule

from treadle.errors import UsageError
from treadle.loop.events import Callback
from treadle.run.folder import write_bytes


class ProfilerCallback(Callback):
    """Writes a trace of a few training steps to `learn.path/fname`, for chrome://tracing or
    https://ui.perfetto.dev.

    The first `skip` batches of the fit run as they are, one more warms the profiler up, `n_steps`
    are traced. Writing waits for the device; steps afterwards cost nothing more.

    Args:
        n_steps, skip: as above, in training batches.
        fname: the file, relative to `learn.path`; compressed if it ends in ".gz".
        **options: those of `torch.profiler.profile`: `record_shapes`, `with_stack`,
            `profile_memory`, ...

    Attributes:
        profile: the `torch.profiler.profile`; `learn.profiler.profile.key_averages()` sums up.

    Raises:
        UsageError: if `n_steps` is below 1; when a fit starts, if it has too few batches.
        DataError: if the file cannot be written.

    >>> trace = ProfilerCallback(n_steps=3, record_shapes=True)
    """

    order = 99  # a step ends when all others have done their part
    run_valid = False
    reports = True
    on_main = True

    def __init__(
        self,
        n_steps: int = 3,
        skip: int = 5,
        fname: str | os.PathLike[str] = "trace.json",
        **options: Any,
    ) -> None:
        if n_steps < 1:
            raise UsageError(f"ProfilerCallback(n_steps={n_steps}) traces nothing; give 1 or more.")
        self.n_steps, self.skip, self.fname, self.options = n_steps, skip, fname, options

    def before_fit(self) -> None:
        batches, needed = self.n_epoch * len(self.dls.train), self.skip + 1 + self.n_steps
        if batches < needed:
            raise UsageError(
                f"ProfilerCallback needs {needed} training batches ({self.skip} to skip, 1 to warm "
                f"up, {self.n_steps} to trace), and this fit has {batches}; lower skip or n_steps."
            )
        steps = schedule(wait=self.skip, warmup=1, active=self.n_steps, repeat=1)
        self.profile = profile(schedule=steps, on_trace_ready=self._write, **self.options)
        self.scope.enter_context(self.profile)

    def after_batch(self) -> None:
        self.profile.step()

    def _write(self, done: profile) -> None:
        file = Path(self.path / self.fname)
        with suppress(OSError):  # what stands in the way, writing says in a sentence
            file.parent.mkdir(parents=True, exist_ok=True)
        # torch would only log that it cannot write, and might leave half a file.
        with tempfile.TemporaryDirectory() as folder:
            beside = Path(folder) / file.name
            done.export_chrome_trace(str(beside))
            write_bytes(file, beside.read_bytes())
