"""What a run leaves behind: its folder, its files, and the record that a report is made from."""

from __future__ import annotations

from treadle.run.checkpoint import (
    Checkpoint,
    best_checkpoint,
    checkpoints,
    newest_checkpoint,
    read_checkpoint,
    read_newest,
    verify_checkpoint,
    write_checkpoint,
)
from treadle.run.checkpoint_writer import Writer
from treadle.run.durable import DiskFullError
from treadle.run.folder import (
    environment,
    new_run_folder,
    write_bytes,
    write_history,
    write_json,
    write_text,
)
from treadle.run.record import (
    BatchTimes,
    ClassBalance,
    ConfusedExample,
    Confusion,
    RunRecord,
    SeenSamples,
    SlowBatch,
)
from treadle.run.record_file import read_record, write_record

__all__ = [
    "BatchTimes",
    "Checkpoint",
    "ClassBalance",
    "ConfusedExample",
    "Confusion",
    "DiskFullError",
    "RunRecord",
    "SeenSamples",
    "SlowBatch",
    "Writer",
    "best_checkpoint",
    "checkpoints",
    "environment",
    "new_run_folder",
    "newest_checkpoint",
    "read_checkpoint",
    "read_newest",
    "read_record",
    "verify_checkpoint",
    "write_bytes",
    "write_checkpoint",
    "write_history",
    "write_json",
    "write_record",
    "write_text",
]
