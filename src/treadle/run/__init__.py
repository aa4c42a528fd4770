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
from treadle.run.record import ConfusedExample, Confusion, RunRecord

__all__ = [
    "ConfusedExample",
    "Confusion",
    "RunRecord",
    "environment",
    "new_run_folder",
    "write_bytes",
    "write_history",
    "write_json",
    "write_text",
]
