"""The one file that reads pickles: foreign weights to safetensors, in a process of its own.

`treadle.run.convert` starts it as a script, so it imports nothing of Treadle. torch's reader for
`weights_only=True` builds tensors and refuses everything else; it was broken twice (CVE-2025-32434,
CVE-2026-24747), so it stands behind two fences: limits of the system on memory, time, processes and
the size of files, and a hook on what the interpreter is about to do. The hook is no sandbox; it
ends what a gadget in Python does first.

The answer is one line of JSON on stdout: `{"tensors": n}` or `{"error": sentence}`.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_SAFE_SINCE = (2, 10)
_SPARE = 512 << 20  # bytes beside the tensors themselves
_FORBIDDEN = (
    "os.exec os.fork os.forkpty os.kill os.posix_spawn os.spawn os.startfile os.system pty.spawn "
    "subprocess. socket. urllib. http. ftplib. smtplib. shutil. ctypes. os.chmod os.chown "
    "os.link os.mkdir os.remove os.rename os.rmdir os.symlink os.truncate os.putenv os.unsetenv "
    "webbrowser. sqlite3. mmap. signal. syslog. winreg. code.__new__ tempfile."
).split()


class Refused(Exception):
    """What the file holds is not what is wanted; the sentence for the user."""


def read_tensors(path: str, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote, each with its own memory."""
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < _SAFE_SINCE:
        raise Refused(f"torch {torch.__version__} reads such files unsafely; install 2.10 or newer")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is said by what is refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # of many classes, one for each way to be damaged
        raise Refused(_why(error)) from error
    return {name: _plain(name, t) for name, t in _flat(content, key).items()}


def _why(error: Exception) -> str:
    text = str(error)
    asked = re.search(r"GLOBAL ([A-Za-z_][\w.]*)", text)
    if asked:
        return f"it asks to run {asked[1]}, and a file of weights runs nothing"
    if "TorchScript" in text:
        return "it is a TorchScript program, not weights; save model.state_dict() of the model"
    return f"it is damaged or holds more than tensors ({type(error).__name__})"


def _flat(content: Any, key: str | None) -> Mapping[str, Tensor]:
    if not isinstance(content, dict):
        raise Refused(f"it holds a {type(content).__name__}; expected a dict of tensors")
    nested = sorted(str(k) for k, v in content.items() if _is_flat(v))
    if key is not None:
        if key not in content:
            raise Refused(f"it has no key {key!r}; dicts of tensors are under {nested or 'none'}")
        content = content[key]
    if not _is_flat(content):
        hint = f"; say key={nested[0]!r} for the dict of tensors there" if nested else ""
        raise Refused(f"it is no flat dict of tensors{hint}")
    flat: Mapping[str, Tensor] = content
    return flat


def _is_flat(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def _plain(name: str, tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise Refused(f"{name[:100]!r} is not a dense tensor with values")
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _fence(memory: int, seconds: int, largest: int) -> None:
    """The limits of this process; what the platform lacks is left out."""
    try:
        import resource
    except ImportError:
        return
    used = 0
    try:
        with Path("/proc/self/statm").open() as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        memory = -1  # the address space in use is not known, so no limit can be told from it
    wanted = {
        "RLIMIT_AS": used + memory if memory > 0 else None,
        "RLIMIT_CPU": seconds,
        "RLIMIT_FSIZE": largest,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }
    for name, value in wanted.items():
        limit = getattr(resource, name, None)
        if limit is None or value is None:
            continue
        try:
            resource.setrlimit(limit, (value, value))
        except (ValueError, OSError):  # a lower limit is in force, or the system knows none
            continue


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        mode, flags = args[1], args[2]
        writes = isinstance(mode, str) and not set(mode).isdisjoint("wax+")
        if writes or (isinstance(flags, int) and flags & 0b11):
            raise PermissionError("the file tried to write")
    elif event.startswith(tuple(_FORBIDDEN)):
        raise PermissionError(f"the file tried {event}")


def main() -> None:
    """Reads what `convert` asks for on stdin: source, target, key, bytes of the source, seconds."""
    asked = json.loads(sys.stdin.read())
    sys.stdin.close()
    size = asked["size"]
    _fence(4 * size + _SPARE, asked["seconds"], 4 * size + (1 << 20))
    sys.addaudithook(_hook)
    try:
        tensors = read_tensors(asked["source"], asked["key"])
        save_file(tensors, asked["target"])
        answer: dict[str, Any] = {"tensors": len(tensors)}
    except Refused as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": "it needs far more memory than its size"}
    except Exception as error:
        text = str(error)
        full = "memory" in text or "allocate" in text
        reason = "it needs far more memory than its size" if full else f"{type(error).__name__}"
        answer = {"error": reason}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
