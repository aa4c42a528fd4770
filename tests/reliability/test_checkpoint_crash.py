"""Crashes at every named moment, kills at random ones, and disks that fill: a whole checkpoint is
always left, the old one or the new one and never a mix."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from types import SimpleNamespace

import pytest
from checkpoint_faults import (
    PHASES,
    act,
    assert_goes_on,
    content_of,
    crashes,
    end_at,
    full_disks,
    moments,
    prepare,
    save_kills,
)
from checkpoint_kit import Tried, assert_whole, write

from treadle.run import durable
from treadle.run.checkpoint import checkpoints

KILLS = 30

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # fork beside threads
]


@pytest.fixture
def no_flush(monkeypatch):
    """Without the waits for the disk: an end of the process loses nothing that the system has."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.mark.usefixtures("no_flush")
@pytest.mark.parametrize("phase", PHASES)
def test_a_crash_at_every_moment_leaves_a_whole_checkpoint(tmp_path, phase):
    passed = moments(tmp_path / "clean", phase)
    if phase == "rotate":
        assert len(set(passed)) >= 30, passed
        assert {name.split(":")[0] for name in passed} == {"save", "rotate", "sweep", "load"}
    tried = crashes(tmp_path, phase, passed)
    assert tried.wrong == []
    assert tried.count == len(passed)


@pytest.mark.usefixtures("no_flush")
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=str)
@pytest.mark.parametrize("phase", ["first", "overwrite", "rotate"])
def test_an_error_at_every_moment_leaves_a_whole_checkpoint(tmp_path, monkeypatch, phase, error):
    tried = Tried()
    for count, name in enumerate(moments(tmp_path / "clean", phase)):
        folder = tmp_path / f"{count}"
        prepare(folder, phase)

        def fail() -> None:
            raise error

        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old one that could not be removed
            patch.setattr(durable, "failpoint", end_at(count, fail))
            with contextlib.suppress(durable.DataError, OSError, KeyboardInterrupt):
                act(folder, phase)
        with tried.one(name):
            for path in checkpoints(folder):
                assert_whole(path)
            assert checkpoints(folder) or phase == "first"
            assert_goes_on(folder)
        shutil.rmtree(folder)
    assert tried.wrong == []


def test_kills_at_random_moments_lose_nothing(tmp_path):
    """SIGKILL of a process that saves without end, in a thread and in its main one by turns."""
    tried, newest = save_kills(tmp_path, KILLS)
    assert tried.wrong == []
    assert newest > KILLS // 3, "hardly anything was saved"
    write(tmp_path, newest + 1)
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_at_20_levels_loses_nothing(tmp_path):
    tried = full_disks(tmp_path, 20)
    assert tried.wrong == []
    assert tried.count == 20


def test_a_disk_with_too_little_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    write(tmp_path, 1)
    before = content_of(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1234))
    monkeypatch.setattr(durable, "failpoint", lambda name: pytest.fail(f"it began: {name}"))
    with pytest.raises(durable.DiskFullError, match=r"needs 80,\d\d\d bytes, 1,234 are free"):
        write(tmp_path, 2, 10_000)
    assert content_of(tmp_path) == before
