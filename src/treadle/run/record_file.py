"""`record.json` in a run folder: all that a report is made from, so that it can be made again.

Plain JSON: images are base64, a number that is not finite is the text "nan", "inf" or "-inf".
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from treadle.errors import DataError, UsageError
from treadle.run.folder import write_json
from treadle.run.record import (
    BatchTimes,
    ClassBalance,
    ConfusedExample,
    Confusion,
    RunRecord,
    SeenSamples,
    SlowBatch,
)
from treadle.world import world

RECORD = "record.json"


def write_record(folder: str | os.PathLike[str], record: RunRecord) -> Path:
    """Writes `record` to `record.json` in the folder of its run, whole or not at all. Of several
    processes only the main one writes.

    Raises DataError if it cannot be written.

    >>> import tempfile
    >>> record = RunRecord("digits", "2026-01-31T12:00:00", ["epoch"], [[0]], losses=[0.5])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_record(folder, record)
    ...     read_record(folder).losses
    [0.5]
    """
    if not world().is_main:
        return Path(folder) / RECORD
    return write_json(Path(folder) / RECORD, _with_text(asdict(record)), indent=None)


def read_record(folder: str | os.PathLike[str]) -> RunRecord:
    """The record that `write_record` wrote into the folder of a run.

    Raises DataError if there is none, or it is damaged.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise DataError(
            f"There is no {RECORD} in {folder}; give the folder of a run that has ended at least "
            "one epoch, such as runs/DATE-TIME-NAME."
        )
    try:
        return _record(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
        raise DataError(
            f"{path} is not the record of a run ({type(error).__name__}: {error}); restore it, or "
            "train again."
        ) from error


def _with_text(obj: Any) -> Any:
    """The same with base64 in place of bytes."""
    if isinstance(obj, bytes):
        return base64.b64encode(obj).decode()
    if isinstance(obj, Mapping):
        return {key: _with_text(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple) and not all(isinstance(v, float | int) for v in obj):
        return [_with_text(value) for value in obj]
    return obj


def _record(plain: Mapping[str, Any]) -> RunRecord:
    confusion, balance, times = (plain.get(key) for key in ("confusion", "balance", "times"))
    return RunRecord(
        **{
            **plain,
            "rows": [list(map(_number, row)) for row in plain["rows"]],
            "losses": _numbers(plain["losses"]),
            "raw_losses": _numbers(plain["raw_losses"]),
            "hps": {name: _numbers(values) for name, values in plain["hps"].items()},
            "confusion": Confusion(**confusion) if confusion else None,
            "confused": [_example(example) for example in plain["confused"]],
            "worst": [_example(example) for example in plain["worst"]],
            "seen": [_seen(samples) for samples in plain["seen"]],
            "balance": ClassBalance(**balance) if balance else None,
            "times": _times(times) if times else None,
            "skipped": [(name, reason) for name, reason in plain["skipped"]],
        }
    )


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


def _numbers(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]


def _example(plain: Mapping[str, Any]) -> ConfusedExample:
    image = plain["image"]
    numbers = {key: float(plain[key]) for key in ("probability", "loss")}
    return ConfusedExample(**{**plain, **numbers, "image": _bytes(image) if image else None})


def _seen(plain: Mapping[str, Any]) -> SeenSamples:
    return SeenSamples(**{**plain, "images": [_bytes(image) for image in plain["images"]]})


def _times(plain: Mapping[str, Any]) -> BatchTimes:
    return BatchTimes(**{**plain, "slowest": [SlowBatch(**batch) for batch in plain["slowest"]]})


def _bytes(text: str) -> bytes:
    """Only an image is let into a page: the bytes of a PNG."""
    try:
        image = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"an image is not base64: {error}") from error
    if not image.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("an image is not a PNG")
    return image
