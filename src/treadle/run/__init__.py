"""What a run leaves behind: its folder, its files, and the record that a report is made from."""

from __future__ import annotations

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
    "ClassBalance",
    "ConfusedExample",
    "Confusion",
    "RunRecord",
    "SeenSamples",
    "SlowBatch",
    "environment",
    "new_run_folder",
    "read_record",
    "write_bytes",
    "write_history",
    "write_json",
    "write_record",
    "write_text",
]
