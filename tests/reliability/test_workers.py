"""Workers that fail: one that is killed, crashes, raises, runs out of memory, gives ragged samples,
hangs. Each is an error soon, that says what it was; nothing is left; and the learner goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Dataset

from treadle.data import DataLoader, DataLoaders
from treadle.data import workers as workers_module
from treadle.learner import Learner
from treadle.losses import MSELossFlat

BAD = 13


class Data(Dataset[Any]):
    """24 samples, of which one is not as it should be, until it is mended."""

    def __init__(self, fault: Callable[[], Any] | None) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        if index == BAD and self.fault is not None:
            return self.fault()
        return torch.full((3,), float(index)), torch.tensor([1.0])


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crashed() -> None:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # no words of the test runner's about it
    os.kill(os.getpid(), signal.SIGSEGV)


def raises() -> None:
    raise LookupError("no such sample")


def out_of_memory() -> Any:
    return bytearray(1 << 60)


def ragged() -> Any:
    return torch.zeros(4), torch.tensor([1.0])


RELEASE = threading.Event()


def hangs() -> None:
    RELEASE.wait(60)


def in_threads(data: Data, workers: int) -> Any:
    return DataLoader(data, 4, shuffle=True, seed=1, num_workers=workers, device="cpu")


def in_processes(data: Data, workers: int) -> Any:
    return TorchLoader(data, 4, num_workers=workers, timeout=1 if data.fault is hangs else 0)


FAULTS: dict[str, tuple[Callable[[], Any], Callable[[Data, int], Any], str]] = {
    "killed": (killed, in_processes, r"was ended by signal 9|killed by signal: Killed"),
    "crashed": (crashed, in_processes, r"was ended by signal 11|Segmentation fault"),
    "raises, in a process": (raises, in_processes, "no such sample"),
    "raises": (raises, in_threads, "no such sample"),
    "out of memory, in a process": (out_of_memory, in_processes, "MemoryError"),
    "out of memory": (out_of_memory, in_threads, "memory ran out while a batch was loaded"),
    "ragged, in a process": (ragged, in_processes, r"stack expects each tensor to be equal size"),
    "ragged": (
        ragged,
        in_threads,
        r"different shapes .* sample \d+ has the shape .* sample 13 has|"
        r"different shapes .* sample 13 has the shape",
    ),
    "hangs, in a process": (hangs, in_processes, "timed out after 1 seconds"),
    "hangs": (
        hangs,
        in_threads,
        r"Sample 13 does not come: sample 13\. Worker treadle-data-\d has been at it for 0\.5 "
        r"seconds, in wait \(.*threading\.py, line \d+\)\.",
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error_soon(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, loader, said = FAULTS[name]
    monkeypatch.setattr(workers_module, "_STALL_S", 0.5)
    monkeypatch.setattr(workers_module, "_LEAVE_S", 0.2 if fault is hangs else 5.0)
    RELEASE.clear()
    data = Data(fault)
    dls = DataLoaders(loader(data, 2), loader(Data(None), 0), device="cpu")
    learn = Learner(dls, nn.Linear(3, 1), MSELossFlat())
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    before = around()
    start = time.monotonic()
    with learn.no_logging(), pytest.raises(Exception, match=said) as caught:
        learn.fit(1)
    assert time.monotonic() - start < 10
    if loader is in_threads and fault in (raises, out_of_memory):
        assert f"While reading sample {BAD}: sample {BAD}" in notes(caught.value)
    if name == "hangs":
        assert "RELEASE.wait(60)" in "".join(notes(caught.value))
    del caught
    RELEASE.set()
    gone_by = time.monotonic() + 5
    while (left := around() - before) and time.monotonic() < gone_by:
        time.sleep(0.02)
    assert not left
    data.fault = None
    with learn.no_logging():
        learn.fit(1)  # mended, the same learner goes on
    assert len(learn.recorder.values) == 1


def notes(error: BaseException | None) -> list[str]:
    """Those of an error and of all that it came from."""
    if error is None:
        return []
    return [*getattr(error, "__notes__", ()), *notes(error.__cause__)]


def around() -> set[str]:
    """Our threads, our processes, and the files that torch shares with them."""
    return {
        *(t.name for t in threading.enumerate() if t.name.startswith("treadle-data")),
        *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(),
        *(file.name for file in Path("/dev/shm").glob(f"torch_{os.getpid()}*")),
    }


def test_a_slow_sample_after_another_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is for one sample, however long the batch takes."""
    monkeypatch.setattr(workers_module, "_STALL_S", 0.3)

    class Slow(Data):
        def __getitem__(self, index: int) -> Any:
            time.sleep(0.1)
            return super().__getitem__(index)

    assert len(list(DataLoader(Slow(None), 8, num_workers=2, device="cpu"))) == 3


STUCK = """
import threading, time
import torch
from treadle.data import DataLoader, workers
workers._STALL_S, workers._LEAVE_S = 0.2, 0.2
class Stuck:
    def __len__(self): return 8
    def __getitem__(self, index): time.sleep(600)
list(DataLoader(Stuck(), 4, num_workers=2, device="cpu"))
"""


def test_a_worker_that_is_stuck_does_not_keep_the_process() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60, env=env
    )
    assert done.returncode == 1 and "Sample 0 does not come" in done.stderr.splitlines()[-1]
