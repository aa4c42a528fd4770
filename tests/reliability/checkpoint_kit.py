"""What the tests of checkpoints share: small contents that tell one step from another."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from treadle.run.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

STRANGE = struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0]  # a NaN with sign and payload


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
    finally:
        os._exit(status)
