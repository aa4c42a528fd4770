"""What the tests of checkpoints share: small contents that tell one step from another."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from treadle.run.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

STRANGE = struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0]  # a NaN with sign and payload


@dataclass
class Tried:
    """How many faults were tried, and of those that were not survived which, and what was seen."""

    count: int = 0
    wrong: list[str] = field(default_factory=list)

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """One more: what the block asserts must hold."""
        self.count += 1
        try:
            yield
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1].line
            self.wrong.append(f"{name}: {line} ({type(error).__name__}: {error})")


def tensors_of(step: int, numbers: int = 40) -> dict[str, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(step)
    weight = torch.randn(numbers // 4, 4, generator=draw)
    return {
        "model": {"embed": weight, "head": weight, "bias": torch.full((3,), float(step))},
        "optimizer": {"mean": torch.randn(numbers, generator=draw), "steps": torch.tensor(step)},
    }


def values_of(step: int) -> dict[str, Any]:
    return {"loop": {"step": step, "loss": step / 3, "none": None}, "table": [[step, float("inf")]]}


def write(folder: Path, step: int, numbers: int = 40, **how: Any) -> Path:
    return write_checkpoint(folder, step, tensors_of(step, numbers), values_of(step), **how)


def assert_is(found: Checkpoint, step: int, numbers: int = 40) -> None:
    """The checkpoint is that of `step`, in every bit, and of no other."""
    assert found.step == step
    wanted = tensors_of(step, numbers)
    assert found.tensors.keys() == wanted.keys()
    for part, named in wanted.items():
        assert found.tensors[part].keys() == named.keys()
        for name, tensor in named.items():
            assert torch.equal(found.tensors[part][name], tensor)
    assert found.tensors["model"]["embed"] is found.tensors["model"]["head"]
    assert found.values == values_of(step)


def assert_whole(path: Path, numbers: int = 40) -> int:
    """The checkpoint is, in every bit, that of the step that it says; gives the step."""
    found = read_checkpoint(path)
    assert_is(found, found.step, numbers)
    return found.step


def text_of(plain: dict[str, Any]) -> bytes:
    return (json.dumps(plain, indent=1) + "\n").encode()


def sealed(plain: dict[str, Any]) -> bytes:
    rest = {key: value for key, value in plain.items() if key != "seal"}
    return text_of(rest | {"seal": hashlib.sha256(text_of(rest)).hexdigest()})


def change(path: Path, how: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest and seals it again."""
    plain = json.loads((path / "manifest.json").read_text())
    how(plain)
    (path / "manifest.json").write_bytes(sealed(plain))


def put(path: Path, file: str, data: bytes) -> None:
    """Puts a file into the checkpoint and its true size and hash into the manifest."""
    (path / file).write_bytes(data)
    kind = "tensors" if file.endswith(".safetensors") else "values"
    stored = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(path, lambda plain: plain[kind].update({file.split(".")[0]: stored}))


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a process of its own, as a copy of this one; gives its exit status."""
    pid = start_child(work)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start_child(work: Callable[[], None]) -> int:
    """Starts `work` in a copy of this process and gives its number."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        # not by sys.stderr: what pytest captures there stays in this process
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)
