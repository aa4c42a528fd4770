"""Foreign weights, once and for all turned into safetensors."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from treadle.errors import DataError, UsageError

__all__ = ["convert_weights"]

_CHILD = Path(__file__).with_name("convert_child.py")
_ENVIRONMENT = (
    "PATH HOME LANG LC_ALL SYSTEMROOT TEMP TMP TMPDIR PYTHONPATH PYTHONHOME LD_LIBRARY_PATH "
    "DYLD_LIBRARY_PATH VIRTUAL_ENV USERPROFILE APPDATA"
).split()


def convert_weights(
    path: str | Path, out: str | Path | None = None, key: str | None = None, timeout: float = 300
) -> Path:
    """Turn a `.pth` or `.pt` file of tensors into safetensors; returns the file that was written.

    The file is read with `weights_only=True` in a fresh interpreter that ends with it. It gets no
    secrets of this one's environment, may use memory and write bytes in proportion to the file,
    and `timeout` seconds. Only a flat dict of names and dense tensors is taken.

    Args:
        path: a file that `torch.save` wrote, or something that says it is one.
        out: where the safetensors file goes; by default beside `path`.
        key: the dict of tensors to take from a checkpoint of several parts, such as "state_dict".

    Raises:
        DataError: if there is no such file, it is refused (with the reason), or `out` cannot be
            written; then nothing is written.
        UsageError: if `out` is the file itself.
    """
    source = Path(path).absolute()
    target = source.with_suffix(".safetensors") if out is None else Path(out).absolute()
    if not source.is_file():
        raise DataError(f"there is no file {path}; give the file that torch.save wrote.")
    if source == target or (target.exists() and source.samefile(target)):
        raise UsageError(f"{path} would be written over by its conversion; give another out=.")
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        mode = beside.stat().st_mode  # as for any file of this user; safetensors makes it private
        asked = {
            "source": str(source),
            "target": str(beside),
            "key": key,
            "size": source.stat().st_size,
            "seconds": max(int(timeout), 1),
        }
        _accept(_asked(asked, path, timeout), path)
        beside.chmod(mode)
        beside.replace(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror or error}.") from error
    finally:
        beside.unlink(missing_ok=True)
    return target


def _asked(asked: dict[str, Any], path: str | Path, timeout: float) -> Any:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        return subprocess.run(  # noqa: S603
            # -P: no module of the working folder or of this one may stand in for another
            [sys.executable, "-P", "-B", str(_CHILD)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=kept | threads,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"{path} was not read within {timeout:g} seconds; give a longer timeout= if you trust "
            "its size."
        ) from error


def _accept(done: Any, path: str | Path) -> None:
    """Raise DataError unless the process said that it wrote the file."""
    try:
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        error = answer.get("error")
        if done.returncode == 0 and isinstance(answer.get("tensors"), int):
            return
    except (ValueError, IndexError, AttributeError):
        error = None
    if isinstance(error, str):
        shown = "".join(c if c.isprintable() else "?" for c in error)[:500]
        raise DataError(f"{path} was not converted: {shown}.")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise DataError(
            f"{path} was not converted: the process that read it was ended by {name}, as happens "
            "when a limit of memory or time is passed."
        )
    last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1][:300]
    raise DataError(f"{path} was not converted: the process that read it failed ({last}).")
