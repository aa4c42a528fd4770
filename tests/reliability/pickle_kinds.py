"""Twenty hostile pickles, harmless here: each would make a file called `canary`."""

from __future__ import annotations

import builtins
import collections
import io
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *args: Any, state: Any = None) -> None:
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.call


def touch(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


def zipped(data: bytes, name: str = "data.pkl", **others: bytes) -> bytes:
    """A file in the form of today's torch.save around a pickle of anybody's."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(f"a/{name}", data)
        file.writestr("a/version", b"3\n")
        file.writestr("a/byteorder", b"little")
        for other, content in others.items():
            file.writestr(f"a/{other}", content)
    return out.getvalue()


def legacy(data: bytes) -> bytes:
    """The form of torch.save before 1.6: pickles one after another."""
    info = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [0x1950A86A20F9469CFC6C, 1001, info]
    return b"".join(pickle.dumps(part, 2) for part in head) + data + pickle.dumps([], 2)


def build(canary: Path) -> dict[str, bytes]:
    code = touch(canary)
    shell = f"touch {canary}"
    tensor = torch.zeros(2)

    def plain(thing: Any) -> bytes:
        return pickle.dumps(thing, 2)

    nested: Any = Call(os.system, shell)
    for _ in range(50):
        nested = {"state_dict": [nested]}
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    return {
        "os.system": zipped(plain({"w": Call(os.system, shell)})),
        "eval": zipped(plain({"w": Call(builtins.eval, code)})),
        "exec": zipped(plain({"w": Call(builtins.exec, code)})),
        "subprocess": zipped(plain({"w": Call(subprocess.Popen, ["touch", str(canary)])})),
        "getattr of a tensor's method": zipped(
            plain(Call(builtins.getattr, Call(builtins.__import__, "os"), "system"))
        ),
        "import": zipped(plain({"w": Call(builtins.__import__, "antigravity")})),
        "open for writing": zipped(plain({"w": Call(open, str(canary), "w")})),
        "torch.load inside": zipped(plain({"w": Call(torch.load, str(canary))})),
        "torch._utils on a path": zipped(
            plain({"w": Call(torch._utils._import_dotted_name, "os.system")})
        ),
        "rebuild with a hook": zipped(
            plain({"w": Call(torch._utils._rebuild_parameter, Call(os.system, shell), True, {})})
        ),
        "state of a tensor": zipped(
            plain(Call(collections.OrderedDict, state={"__class__": Call(os.system, shell)}))
        ),
        "a key that calls": zipped(plain(collections.OrderedDict([(Call(os.system, shell), 1)]))),
        "nested in 50 dicts": zipped(plain(nested)),
        "legacy os.system": legacy(plain({"w": Call(os.system, shell)})),
        "plain pickle": plain(Call(os.system, shell)),
        "protocol 0": b"cos\nsystem\n(S'" + shell.encode() + b"'\ntR.",
        "after a good one": plain({"w": 1}) + plain(Call(os.system, shell)),
        "a module object": zipped(plain(Call(nn.Linear, 2, 2, state={"_forward_pre_hooks": code}))),
        "numpy object array": zipped(plain({"w": Call(_numpy_rebuild(), tensor, (0,), b"b")})),
        "stack of lists": zipped(deep),
    }


def _numpy_rebuild() -> Any:
    from numpy._core.multiarray import _reconstruct

    return _reconstruct
