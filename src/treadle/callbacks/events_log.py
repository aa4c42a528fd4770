"""What happens in a fit, as lines of the run's `events.jsonl`."""

from __future__ import annotations

import os
from pathlib import Path

from treadle.loop.events import Callback
from treadle.run.events import EventLog


class EventsLog(Callback):
    """Adds to `events.jsonl` in `folder` a line for each epoch that ends, with its row of the
    table, and one for each checkpoint of a `CheckpointCallback` that has got onto the disk.

    Raises:
        DataError: if the file cannot be written.
    """

    order = 61  # after the Recorder has made the row
    reports = True
    on_main = True
    state_names = ()

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.log = EventLog(folder)

    def before_fit(self) -> None:
        self.written: Path | None = None
        self.scope.callback(self.after_batch)  # the last one is there when the fit is over

    def after_batch(self) -> None:
        writer = getattr(getattr(self.learn, "checkpoint", None), "writer", None)
        if writer is not None and writer.last != self.written:
            self.written = writer.last
            step = int(writer.last.name.removeprefix("step-").partition(".")[0])
            self.log.append("checkpoint", updates=step, name=writer.last.name)

    def after_epoch(self) -> None:
        row = dict(zip(self.recorder.metric_names, self.recorder.rows[-1], strict=True))
        self.log.append("epoch", updates=self.updates, row=row)
