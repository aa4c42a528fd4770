"""Crashes at every named moment, kills at random ones, and disks that fill: a whole checkpoint is
always left, the old one or the new one and never a mix.

A crash is a real end of a process (`os._exit`, SIGKILL) in a copy of this one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import resource
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoint_kit import assert_whole, in_child, start_child, tensors_of, values_of, write

from treadle.run import durable
from treadle.run.checkpoint import checkpoints, newest_checkpoint, read_checkpoint
from treadle.run.checkpoint_writer import Writer

KILLS = int(os.environ.get("TREADLE_TEST_KILLS", "30"))
NUMBERS = 20_000  # in each of the two big tensors
CRASH = 77  # the exit status of a process that ends where it was told to

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # fork beside threads
]


@pytest.fixture
def no_flush(monkeypatch):
    """Without the waits for the disk: an end of the process loses nothing that the system has."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def prepare(folder: Path, phase: str) -> None:
    """The state before the save: none, the same step already there, or two older ones of which one
    will go."""
    if phase == "overwrite":
        write(folder, 3)
    if phase == "rotate":
        write(folder, 1)
        write(folder, 2)
        (folder / ".step-000000.0123abcd.part").mkdir()  # of a writer that died
    if phase == "load":
        write(folder, 2)
        write(folder, 3)


def act(folder: Path, phase: str) -> None:
    if phase == "load":
        read_checkpoint(newest_checkpoint(folder))
    else:
        write(folder, 3)


def moments(folder: Path, phase: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every moment that the phase passes, in order, some of them more than once."""
    prepare(folder, phase)
    seen: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(durable, "failpoint", seen.append)
        act(folder, phase)
    return seen


def crash_at(count: int, end: Callable[[], None]) -> Callable[[str], None]:
    left = [count]

    def at(name: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            end()

    return at


@pytest.mark.usefixtures("no_flush")
@pytest.mark.parametrize("phase", ["first", "overwrite", "rotate", "load"])
def test_a_crash_at_every_moment_leaves_a_whole_checkpoint(tmp_path, monkeypatch, phase):
    passed = moments(tmp_path / "clean", phase, monkeypatch)
    if phase == "rotate":
        assert len(set(passed)) >= 30, passed
        assert {name.split(":")[0] for name in passed} == {"save", "rotate", "sweep", "load"}
    was_new = False
    for count, name in enumerate(passed):
        folder = tmp_path / f"{count}"
        prepare(folder, phase)

        def crash(folder: Path = folder, count: int = count) -> None:
            durable.failpoint = crash_at(count, lambda: os._exit(CRASH))
            act(folder, phase)

        assert in_child(crash) == CRASH, name
        newest = newest_checkpoint(folder)  # a warning would be an error here
        is_new = phase == "load" or name in (
            "save: renamed", "save: name on the disk",
        ) or name.startswith("rotate")  # fmt: skip
        was_new |= is_new
        if phase == "first" and not was_new:
            assert newest is None, name
        else:
            assert assert_whole(newest) == (3 if was_new or phase == "overwrite" else 2), name
        for path in checkpoints(folder):
            assert_whole(path)
        # The next save sweeps what was left, and goes on.
        write(folder, 4)
        assert assert_whole(newest_checkpoint(folder)) == 4
        assert not list(folder.glob(".*")), name
        assert len(checkpoints(folder)) <= 2
        shutil.rmtree(folder)


@pytest.mark.usefixtures("no_flush")
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=str)
@pytest.mark.parametrize("phase", ["first", "overwrite", "rotate"])
def test_an_error_at_every_moment_leaves_a_whole_checkpoint(tmp_path, monkeypatch, phase, error):
    passed = moments(tmp_path / "clean", phase, monkeypatch)
    for count, name in enumerate(passed):
        folder = tmp_path / f"{count}"
        prepare(folder, phase)

        def fail() -> None:
            raise error

        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old one that could not be removed
            patch.setattr(durable, "failpoint", crash_at(count, fail))
            with contextlib.suppress(durable.DataError, OSError, KeyboardInterrupt):
                act(folder, phase)
        for path in checkpoints(folder):
            assert_whole(path)
        assert checkpoints(folder) or phase == "first"
        write(folder, 4)
        assert assert_whole(newest_checkpoint(folder)) == 4, name
        assert not list(folder.glob(".*")), name
        shutil.rmtree(folder)


def save_without_end(folder: Path, start: int, in_thread: bool) -> None:
    if in_thread:
        with Writer(folder) as writer:
            for step in itertools.count(start):
                writer.submit(step, tensors_of(step, NUMBERS), values_of(step))
    for step in itertools.count(start):
        write(folder, step, NUMBERS)


def test_kills_at_random_moments_lose_nothing(tmp_path):
    """SIGKILL of a process that saves without end, in a thread and in its main one by turns."""
    draw = random.Random()
    newest = 0
    for trial in range(KILLS):
        start, in_thread = newest + 1, trial % 2 == 0
        pid = start_child(lambda s=start, t=in_thread: save_without_end(tmp_path, s, t))
        time.sleep(draw.uniform(0.01, 0.25))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        steps = [assert_whole(path, NUMBERS) for path in checkpoints(tmp_path)]
        assert steps == sorted(steps)
        assert not newest or steps[-1] >= newest
        newest = steps[-1] if steps else newest
    assert newest > KILLS // 3, "hardly anything was saved"
    write(tmp_path, newest + 1)
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_at_20_levels_loses_nothing(tmp_path):
    """The limit of a file's size stands for the disk's end: the system refuses in mid-write."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    before = content_of(tmp_path)
    said = re.compile(r"no room for .*step-000003: it needs [\d,]+ bytes, [\d,]+ are free")

    def save(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            write(tmp_path, 3, NUMBERS)
        except durable.DiskFullError as error:
            os._exit(CRASH if said.search(str(error)) else 1)

    biggest = 4 * NUMBERS
    for level in range(20):
        assert in_child(lambda limit=biggest * level // 20: save(limit)) == CRASH, level
        assert content_of(tmp_path) == before, level
    write(tmp_path, 3, NUMBERS)


def test_a_disk_with_too_little_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    write(tmp_path, 1)
    before = content_of(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1234))
    monkeypatch.setattr(durable, "failpoint", lambda name: pytest.fail(f"it began: {name}"))
    with pytest.raises(durable.DiskFullError, match=r"needs 80,\d\d\d bytes, 1,234 are free"):
        write(tmp_path, 2, 10_000)
    assert content_of(tmp_path) == before


def content_of(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
