"""However a process leaves its loaders: it ends soon, and no process or shared memory is left."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and /dev/shm")

NURSERY = """
import gc, os, sys, threading, time, tracemalloc
from pathlib import Path
import torch
import treadle.data
from treadle.data import CategoryBlock, DataBlock, DataLoader, DataLoaders, ImageBlock, Resize
from treadle.data import aug_transforms, get_image_files, parent_label

BS = 20

class Slow:
    "The first of each worker's batches comes at once; the others take their time, or say why not."
    def __init__(self, error, seconds):
        self.error, self.seconds = error, seconds
    def __len__(self):
        return 40 * BS
    def __getitem__(self, index):
        if index >= 2 * BS:
            if self.error is not None:
                raise self.error
            time.sleep(self.seconds / BS)
        return torch.zeros(1000), index

def pictures(cache):
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label)
    data = block.datasets(Path("pictures")).train
    return DataLoader(data, 4, shuffle=True, item_tfms=Resize(72), num_workers=2, seed=1,
                      batch_tfms=aug_transforms(size=64), cache=cache, device="cpu")

def loader(kind, error=None):
    if kind == "processes":
        torch_loader = torch.utils.data.DataLoader(Slow(error, 2), BS, num_workers=2)
        return DataLoaders(torch_loader, device="cpu").train
    if kind == "threads":
        return DataLoader(Slow(error, 10), BS, num_workers=2, device="cpu")
    return pictures(kind)

def forever(loader):
    while True:
        for batch in loader:
            print("at it")

def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())

def redirected(folder):
    os.setsid()
    os.chdir(folder)
    for to, file, flags in ((0, os.devnull, os.O_RDONLY), (1, "out", os.O_WRONLY),
                            (2, "errors", os.O_WRONLY | os.O_CREAT)):
        fd = os.open(file, flags)
        os.dup2(fd, to)
        os.close(fd)
    sys.stdout.reconfigure(line_buffering=True)

while folder := sys.stdin.readline().strip():
    pid = os.fork()
    if not pid:
        redirected(folder)
        break
    say(pid)
    say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
if folder:
    exec(Path("code.py").read_text())
"""


class Lines:
    """The lines of a pipe, each waited for only so long."""

    def __init__(self, fd: int) -> None:
        self.fd, self.rest = fd, b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(fd, selectors.EVENT_READ)

    def next(self, within: float) -> str:
        deadline = time.monotonic() + within
        while b"\n" not in self.rest:
            if not self.selector.select(max(deadline - time.monotonic(), 0)):
                raise TimeoutError(f"nothing was said within {within} s")
            said = os.read(self.fd, 65536)
            if not said:
                return ""
            self.rest += said
        line, self.rest = self.rest.split(b"\n", 1)
        return line.decode()

    def close(self) -> None:
        self.selector.close()


class Nursery:
    """A process that has imported everything, and forks one for each test, which is quick."""

    def __init__(self, folder: Path) -> None:
        (folder / "nursery.py").write_text(NURSERY)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TREADLE_HOME": str(folder / "home")}
        self.process = subprocess.Popen(
            [sys.executable, folder / "nursery.py"],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.lines = Lines(_pipe(self.process.stdout).fileno())
        self.soon = 0.0

    def measure(self, folder: Path) -> None:
        """How soon is soon: beside what ending a process that does nothing takes on this machine, a
        second, and as much again for what else the machine does. To wait for a batch takes ten."""
        idle = Child(self, folder, "print('done')")
        idle.wait_for("done")
        start = time.perf_counter()
        idle.status(within=60)
        self.soon = 2 + 3 * (time.perf_counter() - start)
        idle.close()

    def begin(self, folder: Path) -> int:
        _pipe(self.process.stdin).write(f"{folder}\n".encode())
        _pipe(self.process.stdin).flush()
        return int(self.lines.next(within=60))

    def close(self) -> None:
        with self.process:
            _pipe(self.process.stdin).close()
            self.lines.close()


class Child:
    """A Python process that runs `code` in a session of its own: it, and all that it starts."""

    def __init__(self, nursery: Nursery, folder: Path, code: str) -> None:
        (folder / "code.py").write_text(textwrap.dedent(code))
        os.mkfifo(folder / "out")
        self.folder, self.nursery = folder, nursery
        self.shm = {*Path("/dev/shm").iterdir()}
        self.out = os.open(folder / "out", os.O_RDONLY | os.O_NONBLOCK)
        self.lines = Lines(self.out)
        self.ended: int | None = None
        self.pid = nursery.begin(folder)

    def wait_for(self, word: str) -> list[str]:
        """The rest of the first line that begins with `word`."""
        while True:
            said = self.lines.next(within=60).split(" ")
            if said[0] == word:
                return said[1:]
            assert said != [""], self.errors

    def status(self, within: float | None = None) -> int:
        """The exit status, that has to come soon."""
        if self.ended is None:
            self.ended = int(self.nursery.lines.next(within or self.nursery.soon))
        return self.ended

    @property
    def errors(self) -> str:
        """What it wrote to stderr."""
        return (self.folder / "errors").read_text()

    def assert_nothing_left(self, within: float = 2.0) -> None:
        """No process of the session, and no file in shared memory that nobody holds."""
        deadline = time.monotonic() + within
        while (left := [*self._processes(), *self._memory()]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left

    def _processes(self) -> Iterator[int]:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session, *_ = stat.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue  # gone meanwhile
            if int(session) == self.pid and state != "Z":
                yield int(stat.parent.name)

    def _memory(self) -> list[Path]:
        new = {*Path("/dev/shm").iterdir()} - self.shm
        held = _mapped() if new else ""  # others may be at work on this machine
        return [file for file in new if str(file) not in held]

    def close(self) -> None:
        """End whatever is still there."""
        for pid in [*self._processes()]:
            os.kill(pid, signal.SIGKILL)
        self.status(within=60)
        self.lines.close()
        os.close(self.out)


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _mapped() -> str:
    """What all processes have mapped."""
    found = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            found.append(maps.read_text())
        except OSError:
            continue
    return "\n".join(found)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    made.measure(tmp_path_factory.mktemp("idle"))
    yield made
    made.close()


Start = Callable[[str], Child]


@pytest.fixture
def start(nursery: Nursery, tmp_path: Path) -> Iterator[Start]:
    """Starts a `Child` with 40 small pictures of two classes in its folder."""
    rng = np.random.default_rng(0)
    for index in range(40):
        file = tmp_path / "pictures" / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(file)
    children: list[Child] = []

    def begin(code: str) -> Child:
        children.append(Child(nursery, tmp_path, code))
        return children[-1]

    yield begin
    for child in children:
        child.close()


@pytest.mark.parametrize("kind", ["threads", "processes", "memory", "disk"])
def test_ctrl_c(start: Start, kind: str) -> None:
    child = start(f"forever(loader({kind!r}))")
    child.wait_for("at")
    time.sleep(0.1)
    os.killpg(child.pid, signal.SIGINT)  # to all of them, as a terminal does
    assert child.status() in (-signal.SIGINT, 130)
    child.assert_nothing_left()
    assert "KeyboardInterrupt" in child.errors


@pytest.mark.parametrize("kind", ["threads", "processes", "memory", "disk"])
def test_the_process_is_killed(start: Start, kind: str) -> None:
    child = start(f"forever(loader({kind!r}))")
    for _ in range(2):  # torch's workers take whoever is their parent when they are ready for it;
        child.wait_for("at")  # one whose parent died before that would stay for ever
    os.kill(child.pid, signal.SIGKILL)
    assert child.status() == -signal.SIGKILL
    # torch's worker processes look for their parent between two batches
    child.assert_nothing_left(within=15 if kind == "processes" else 1)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_an_exception_in_a_data_set(start: Start, kind: str) -> None:
    child = start(f"forever(loader({kind!r}, ValueError('unreadable')))")
    child.wait_for("at")
    assert child.status() == 1
    child.assert_nothing_left()
    assert "ValueError: " in child.errors and "unreadable" in child.errors


LEAVING = {
    "ends with the iterator still alive": ("batches = iter(dl); next(batches); print('left')", 0),
    "breaks": ("for batch in dl: print('left'); break", 0),
    "exits": ("for batch in dl: print('left'); sys.exit(3)", 3),
    "raises": ("for batch in dl: print('left'); 1 / 0", 1),
}


@pytest.mark.parametrize("how", LEAVING)
def test_a_process_that_leaves_an_epoch_ends_soon(start: Start, how: str) -> None:
    code, status = LEAVING[how]
    child = start(f"dl = loader('threads')\n{code}")
    child.wait_for("left")
    assert child.status() == status, child.errors
    child.assert_nothing_left()
    assert bool(child.errors) == (how == "raises")  # no thread complains at the end


@pytest.mark.parametrize("cache", ["memory", "disk", None])
def test_ten_epochs_leak_nothing(start: Start, cache: str | None) -> None:
    child = start(
        f"""
        dl = pictures({cache!r})

        def held():
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            counts = [len(os.listdir(f"/proc/self/{{what}}")) for what in ("task", "fd")]
            return [*counts, threading.active_count(), tracemalloc.get_traced_memory()[0],
                    pages * os.sysconf("SC_PAGE_SIZE")]

        def epochs(count):
            for epoch in range(count):
                for batch in dl: pass
                for batch in dl: break

        tracemalloc.start()
        epochs(3)
        before = held()
        epochs(10)
        print("grown", *(b - a for a, b in zip(before, held())))
        """
    )
    tasks, files, threads, traced, resident = map(int, child.wait_for("grown"))
    assert tasks <= 0 and threads <= 0 and files <= 0
    # the float pictures of ten epochs are 19 MB, as uint8 5 MB
    assert traced < 300_000 and resident < 8_000_000
    assert child.status() == 0
    child.assert_nothing_left()
