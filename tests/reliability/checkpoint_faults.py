"""Faults that checkpoints must survive, one after the other, and what came of each.

A crash is a real end of a process (`os._exit`, SIGKILL) in a copy of this one. Warnings must be
errors where these are called: a checkpoint that is passed over where none is damaged is a fault.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from checkpoint_kit import Tried, assert_whole, in_child, start_child, tensors_of, values_of, write

from treadle.errors import DataError
from treadle.run import durable
from treadle.run.checkpoint import (
    checkpoints,
    newest_checkpoint,
    read_checkpoint,
    read_newest,
    verify_checkpoint,
)
from treadle.run.checkpoint_writer import Writer

PHASES = ("first", "overwrite", "rotate", "load")
NUMBERS = 20_000  # in each of the two big tensors
CRASH = 77  # the exit status of a process that ends where it was told to


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
        read_newest(folder)
    else:
        write(folder, 3)


def moments(folder: Path, phase: str) -> list[str]:
    """Every moment that the phase passes, in order, some of them more than once."""
    prepare(folder, phase)
    seen: list[str] = []
    with mock.patch.object(durable, "failpoint", seen.append):
        act(folder, phase)
    return seen


def end_at(count: int, end: Callable[[], None]) -> Callable[[str], None]:
    """A failpoint that calls `end` when it is passed after so many others."""
    left = [count]

    def at(name: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            end()

    return at


def crashes(folder: Path, phase: str, passed: list[str]) -> Tried:
    """A process ends at each moment that the phase passes: the checkpoint that is left is the old
    one or, from its rename on, the new one, and the next save goes on."""
    tried, was_new = Tried(), phase == "load"
    for count, name in enumerate(passed):
        place = folder / f"{count}"
        prepare(place, phase)

        def crash(place: Path = place, count: int = count) -> None:
            durable.failpoint = end_at(count, lambda: os._exit(CRASH))
            act(place, phase)

        was_new |= name == "save: renamed"
        with tried.one(f"{phase}, {name}"):
            assert in_child(crash) == CRASH
            newest = newest_checkpoint(place)
            if newest is None:
                assert phase == "first" and not was_new
            else:
                assert assert_whole(newest) == (3 if was_new or phase == "overwrite" else 2)
            for path in checkpoints(place):
                assert_whole(path)
            assert_goes_on(place)
        shutil.rmtree(place)
    return tried


def assert_goes_on(folder: Path) -> None:
    """The next save sweeps what was left, and its checkpoint is the newest."""
    write(folder, 4)
    newest = newest_checkpoint(folder)
    assert newest is not None and assert_whole(newest) == 4
    assert not list(folder.glob(".*"))
    assert len(checkpoints(folder)) <= 2


def save_kills(folder: Path, count: int) -> tuple[Tried, int]:
    """SIGKILLs of a process that saves without end, in a thread and in its main one by turns; with
    the last step that was saved."""
    draw, tried, newest = random.Random(), Tried(), 0
    for trial in range(count):
        start, in_thread = newest + 1, trial % 2 == 0
        pid = start_child(lambda s=start, t=in_thread: save_without_end(folder, s, t))
        time.sleep(draw.uniform(0.01, 0.25))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with tried.one(f"kill {trial}"):
            steps = [assert_whole(path, NUMBERS) for path in checkpoints(folder)]
            assert steps == sorted(steps)
            assert not newest or steps[-1] >= newest
            newest = steps[-1] if steps else newest
    return tried, newest


def save_without_end(folder: Path, start: int, in_thread: bool) -> None:
    if in_thread:
        with Writer(folder) as writer:
            for step in itertools.count(start):
                writer.submit(step, tensors_of(step, NUMBERS), values_of(step))
    for step in itertools.count(start):
        write(folder, step, NUMBERS)


def full_disks(folder: Path, levels: int) -> Tried:
    """A disk that ends in mid-write. The limit of a file's size stands for its end: the system
    refuses what is beyond."""
    import resource  # Unix has it

    two_checkpoints(folder)
    before = content_of(folder)
    said = re.compile(r"no room for .*step-000003: it needs [\d,]+ bytes, [\d,]+ are free")

    def save(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            write(folder, 3, NUMBERS)
        except durable.DiskFullError as error:
            os._exit(CRASH if said.search(str(error)) else 1)

    tried, biggest = Tried(), 4 * NUMBERS
    for level in range(levels):
        with tried.one(f"level {level} of {levels}"):
            assert in_child(lambda limit=biggest * level // levels: save(limit)) == CRASH
            assert content_of(folder) == before
    write(folder, 3, NUMBERS)
    return tried


def content_of(folder: Path) -> dict[Path, bytes | None]:
    """All that is in a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def flips(folder: Path, count: int) -> Tried:
    """One bit of a checkpoint turned round, anywhere in any of its files."""
    path, draw, tried = two_checkpoints(folder), random.Random(1), Tried()
    files = files_of(path)
    for flip in range(count):
        name = list(files)[flip % len(files)]
        damaged = bytearray(files[name])
        bit = draw.randrange(len(damaged) * 8)
        damaged[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(damaged)
        with tried.one(f"bit {bit} of {name}"):
            assert_refused(path, name)
        (path / name).write_bytes(files[name])
    return tried


def cuts(folder: Path, count: int) -> Tried:
    """A file of a checkpoint cut, the first ones to a few bytes or none."""
    path, draw, tried = two_checkpoints(folder), random.Random(2), Tried()
    files = files_of(path)
    for cut in range(count):
        name = list(files)[cut % len(files)]
        end = cut // len(files) if cut < 25 else draw.randrange(len(files[name]))
        (path / name).write_bytes(files[name][:end])
        with tried.one(f"{name} cut to {end} bytes"):
            assert_refused(path, name)
        (path / name).write_bytes(files[name])
    return tried


def two_checkpoints(folder: Path) -> Path:
    """Writes those of steps 1 and 2; gives the second."""
    write(folder, 1)
    return write(folder, 2)


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def assert_refused(path: Path, file: str) -> None:
    """All ways in refuse the checkpoint, naming the file; the one of step 1 is used instead, with a
    warning that names it too."""
    for read in (verify_checkpoint, read_checkpoint):
        try:
            read(path)
        except DataError as error:
            assert str(path / file) in str(error), error
        else:
            raise AssertionError(f"{read.__name__} took it")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        newest = newest_checkpoint(path.parent)
    assert newest is not None and assert_whole(newest) == 1
    (said,) = map(str, (warning.message for warning in told))
    assert "passed over" in said and str(path / file) in said, said
