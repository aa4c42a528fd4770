"""The folder of a run and the files in it.

A file is written under a temporary name beside its place and then renamed, so that whoever reads
it, during training or after a crash, finds the old file or the new one and never half of one.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import os
import platform
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from treadle.errors import DataError, UsageError
from treadle.world import world

LOCK, HOLDER = ".lock", ".lock.json"  # see `treadle.run.lock`

_LONGEST_CELL = 32_767  # characters: what a spreadsheet's cell holds


def new_run_folder(
    name: str, out: str | os.PathLike[str] | None = None, root: str | os.PathLike[str] = "runs"
) -> Path:
    """Makes the folder of a new run and returns its path.

    Without `out` it is `root/<date>_<time>-<name>`, with `-2`, `-3`, ... appended while that is
    taken; two runs that start in the same second get two folders. With `out` it is exactly
    `out`, which must not exist or be empty. In `name`, what does not belong in a file name
    becomes a hyphen. Of several processes all call it, the main one makes the folder, and all get
    its path.

    Raises DataError if the folder cannot be made, UsageError if no letter of `name` is usable.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     new_run_folder("resnet18, fp16", root=root).name[19:]
    '-resnet18-fp16'
    """
    return world().on_main(lambda: make_run_folder(name, out, root))


def make_run_folder(
    name: str, out: str | os.PathLike[str] | None = None, root: str | os.PathLike[str] = "runs"
) -> Path:
    """`new_run_folder` in this process, whatever others do."""
    if out is not None:
        return _make_given_folder(Path(out))
    slug = re.sub(r"[^\w.+=-]+", "-", name).strip("-.")[:50]
    if not slug:
        raise UsageError(f"A run cannot be named {name!r}; give a name with letters or digits.")
    stem = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{slug}"
    for n in itertools.count(1):
        folder = Path(root) / (stem if n == 1 else f"{stem}-{n}")
        with sentence_for("make the run folder", folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()  # exclusive: of two processes, one gets it
            except FileExistsError:
                continue
            return folder
    raise AssertionError("unreachable: the count has no end")


def write_bytes(path: str | os.PathLike[str], content: bytes) -> Path:
    """Writes a file at once or not at all (temporary name, flush to disk, rename).

    Raises DataError if the file cannot be written; what was there before is then unharmed.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with sentence_for("write", path):
        try:
            with beside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Writes a text file as UTF-8, at once or not at all; see `write_bytes`."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: str | os.PathLike[str], obj: object, indent: int | None = 2) -> Path:
    """Writes `obj` as JSON, at once or not at all; see `write_bytes`. With `indent=None` it takes
    one line and no more room than it needs.

    Paths become strings, tuples and sets lists, dataclasses objects, numpy and torch scalars
    numbers. JSON has no word for a number that is not finite: it is written as the string "nan",
    "inf" or "-inf". Raises UsageError for anything else, naming where it stands.
    """
    signs = (",", ":") if indent is None else None
    plain = to_plain(obj, "value")
    text = json.dumps(plain, indent=indent, separators=signs, ensure_ascii=False)
    return write_text(path, text + "\n")


def write_history(
    path: str | os.PathLike[str], metric_names: Sequence[str], rows: Sequence[Sequence[object]]
) -> Path:
    """Writes the table of a run as CSV, at once or not at all; see `history_csv`, `write_bytes`.
    Of several processes only the main one writes."""
    if not world().is_main:
        return Path(path)
    return write_text(path, history_csv(metric_names, rows))


def history_csv(metric_names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The table of a run as CSV: a line with the names, then one line an epoch.

    Floats are written with all their digits. A text that a spreadsheet would take for a formula
    gets an apostrophe in front, line breaks in it become spaces, and what would steer a terminal
    the replacement character.

    >>> history_csv(["epoch", "train_loss"], [[0, 0.5]])
    'epoch,train_loss\\n0,0.5\\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(name) for name in metric_names])
    writer.writerows([[_cell(value) for value in row] for row in rows])
    return text.getvalue()


def environment(device: torch.device | str | None = None) -> dict[str, object]:
    """What a run ran on: versions, platform, usable CPU cores and the device's name.

    `device` is the one trained on; by default the machine's accelerator, else its CPU.

    >>> sorted(environment("cpu"))
    ['cpu_count', 'device', 'numpy', 'platform', 'python', 'torch', 'treadle']
    """
    from treadle import __version__

    return {
        "treadle": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": _usable_cpus(),
        "device": _device_name(torch.device(device) if device is not None else _default_device()),
    }


def _make_given_folder(folder: Path) -> Path:
    with sentence_for("make the run folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        # A lock alone was left by a process that was killed before it wrote a word.
        taken = next((p for p in folder.iterdir() if p.name not in (LOCK, HOLDER)), None)
    if taken is not None:
        raise DataError(
            f"The run folder {folder} is not empty (it holds {taken.name}); "
            "give a new or an empty folder, so that no run is overwritten."
        )
    return folder


@contextmanager
def sentence_for(act: str, path: Path) -> Iterator[None]:
    """Turns what the operating system refuses into a DataError: a sentence with the mend."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileExistsError | NotADirectoryError):
            blocker = next((p for p in (path, *path.parents) if p.is_file()), path)
            mend = f"{blocker} is a file, not a folder; move it or choose another place"
        elif isinstance(error, PermissionError):
            mend = "this user may not write there; choose another place or change its permissions"
        elif isinstance(error, FileNotFoundError):
            mend = f"the folder {path.parent} does not exist; make it first"
        elif isinstance(error, IsADirectoryError):
            mend = "a folder of that name is in the way; move it or choose another name"
        else:
            mend = f"the system says: {error.strerror or error}; make room or choose another place"
        raise DataError(f"Cannot {act} {path}: {mend}.") from error


def to_plain(obj: object, where: str) -> Any:
    """`obj` in the terms of JSON; `where` is its address, for the error."""
    if isinstance(obj, torch.Tensor | np.ndarray | np.generic) and np.prod(obj.shape) == 1:
        obj = obj.item()
    if isinstance(obj, float) and not math.isfinite(obj):
        return str(obj)
    if obj is None or isinstance(obj, str | bool | int | float):
        return obj
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        obj = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(key): to_plain(value, f"{where}.{key}") for key, value in obj.items()}
    if isinstance(obj, set | frozenset):
        obj = sorted(obj, key=str)
    if isinstance(obj, list | tuple):
        return [to_plain(value, f"{where}[{i}]") for i, value in enumerate(obj)]
    raise UsageError(
        f"{where} is a {type(obj).__name__}, which JSON cannot hold; "
        "give text, numbers, lists or dictionaries of them."
    )


def _cell(value: object) -> str:
    """One cell of the CSV file."""
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(float(value))  # also of a numpy float, whose own repr names its type
    text = " ".join(str(value).splitlines())
    text = "".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text)
    is_formula = isinstance(value, str) and text[:1] in ("=", "+", "-", "@", "\t")
    return (f"'{text}" if is_formula else text)[:_LONGEST_CELL]


def _usable_cpus() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _default_device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu ({_cpu_name()})"
    return device.type


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text(errors="replace") if info.is_file() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named.group(1) if named else platform.processor() or platform.machine()
