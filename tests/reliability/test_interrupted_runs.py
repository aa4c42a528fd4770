"""The run folder: one writer, told before the first batch, whole lines, and runs that go on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from treadle.cli.main import run
from treadle.errors import DataError
from treadle.run.events import EventLog, read_events
from treadle.run.folder import HOLDER
from treadle.run.lock import BusyError, Holder, read_holder, sole_writer

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def no_flush(monkeypatch):
    """Here processes are killed, not the machine: what is written need not reach the disk."""
    monkeypatch.setattr("os.fsync", lambda fd: None)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What came of the commands of `cli_runs.py`."""
    done = subprocess.run(
        [sys.executable, str(HERE / "cli_runs.py"), str(tmp_path_factory.mktemp("runs"))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # a forked process waits for threads it lacks
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("case", "statuses", "reason"),
    [
        ("kill", [-9, -9, 0], None),
        ("term", [143, 0], "SIGTERM"),
        ("ctrl-c", [130, 0], "Ctrl-C"),
        ("limit", [75, 0], "the time limit"),
    ],
)
def test_a_run_that_was_ended_goes_on_to_the_same_bits(told, case, statuses, reason):
    """`treadle train`, ended early, and `treadle resume`: weights, table and record as without."""
    assert told["whole"]["statuses"] == [0]
    assert told[case]["statuses"] == statuses, told[case]["said"]
    assert told[case]["differs"] == []
    lines = re.findall(r"treadle: .*", told[case]["said"])
    assert lines == (
        [f"treadle: {reason} ended the run; go on with: treadle resume {case}"] if reason else []
    )


# One writer


def in_child(work) -> int:
    """The exit status of a forked process that does `work`."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def held_by_child(folder: Path) -> int:
    """A process that holds the folder until it is killed."""

    def hold():
        with sole_writer(folder):
            time.sleep(60)

    pid = in_child(hold)
    while read_holder(folder) is None or read_holder(folder).pid != pid:
        time.sleep(0.001)
    return pid


def test_a_second_process_is_refused_and_told_by_whom(tmp_path):
    pid = held_by_child(tmp_path)
    began = time.monotonic()
    with pytest.raises(BusyError) as refused, sole_writer(tmp_path):
        pass
    assert time.monotonic() - began < 1
    holder = read_holder(tmp_path)
    for part in (str(tmp_path), f"process {pid} on {holder.host}", holder.since, f"kill {pid}"):
        assert part in str(refused.value)
    os.kill(pid, signal.SIGKILL)
    status_of(pid)


def test_the_lock_of_a_killed_process_is_free_100_times(tmp_path):
    pids = [0]

    def hold():
        with sole_writer(tmp_path) as before:
            assert (0 if before is None else before.pid) == pids[-1]
            os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(101):
        pids.append(in_child(hold))
        assert status_of(pids[-1]) == -signal.SIGKILL


def test_of_many_that_recover_at_once_one_wins(tmp_path):
    """Each that gets in notes it, and finds nobody else inside."""
    pid = held_by_child(tmp_path)
    os.kill(pid, signal.SIGKILL)
    status_of(pid)

    def recover():
        while True:
            try:
                with sole_writer(tmp_path):
                    (tmp_path / "inside").mkdir()  # exclusive
                    time.sleep(0.01)
                    (tmp_path / "inside").rmdir()
                return
            except BusyError:
                continue

    assert [status_of(pid) for pid in [in_child(recover) for _ in range(8)]] == [0] * 8


def test_a_reused_pid_is_not_taken_for_the_holder(tmp_path):
    pid = held_by_child(tmp_path)
    alive = read_holder(tmp_path)
    assert alive.is_alive()
    assert not Holder(pid, alive.host, alive.since, "of an earlier boot 1").is_alive()
    os.kill(pid, signal.SIGKILL)
    while alive.is_alive():  # a zombie, until it is waited for, does not count
        time.sleep(0.001)
    status_of(pid)
    # The lock came free, as on a disk without locks, and the process that took the folder lives:
    parent = os.getppid()
    stat = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()
    process = f"{alive.process.split()[0]} {stat[19]}"
    (tmp_path / HOLDER).write_text(json.dumps({**vars(alive), "pid": parent, "process": process}))
    with pytest.raises(BusyError, match=f"process {parent} "), sole_writer(tmp_path):
        pass


def test_a_lock_of_another_machine_says_how_to_take_over(tmp_path):
    file = tmp_path / HOLDER
    file.write_text(
        json.dumps({"pid": 7, "host": "far-away", "since": "2026-01-31T12:00:00", "process": ""})
    )
    match = "process 7 on far-away at 2026-01-31"
    with pytest.raises(BusyError, match=match) as refused, sole_writer(tmp_path):
        pass
    assert f"delete {file} and try again" in str(refused.value)
    file.unlink()
    with sole_writer(tmp_path):
        assert read_holder(tmp_path).pid == os.getpid()


# Told before the first batch


@pytest.mark.parametrize("what", ["file", "below a file", "read-only", "held"])
def test_a_place_that_will_not_do_is_told_at_once(what, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = [str(out)]
    pid = None
    if what == "file":
        out.write_text("")
        words.append("is a file")
    elif what == "below a file":
        (tmp_path / "notes").write_text("")
        out = tmp_path / "notes" / "out"
        words = ["notes is a file"]
    elif what == "read-only":
        monkeypatch.setattr(Path, "mkdir", refuse)
        words.append("may not write there")
    else:
        out.mkdir()
        pid = held_by_child(out)
        words += [f"process {pid}", "choose another folder"]
    began = time.monotonic()
    assert run(["train", "--device", "cpu", "--out", str(out)]) == 2
    assert time.monotonic() - began < 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    if pid:
        os.kill(pid, signal.SIGKILL)
        status_of(pid)


def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")


# Whole lines


def test_a_half_line_is_not_read_and_removed_before_the_next(tmp_path):
    log = EventLog(tmp_path)
    log.append("started", updates=0, config={"lr": float("nan")})
    log.append("epoch", updates=23, row={"accuracy": 0.5})
    whole = log.path.read_bytes()
    lines = [event["event"] for event in read_events(tmp_path)]
    for cut in range(len(whole)):
        log.path.write_bytes(whole[:cut])
        n = whole[:cut].count(b"\n")
        assert [event["event"] for event in read_events(tmp_path)] == lines[:n]
        EventLog(tmp_path).append("resumed")
        assert [event["event"] for event in read_events(tmp_path)] == [*lines[:n], "resumed"]


def test_a_damaged_line_is_named(tmp_path):
    log = EventLog(tmp_path)
    log.append("started")
    with log.path.open("ab") as file:
        file.write(b"\x00\xff\n[1]\n")
    with pytest.raises(DataError, match=r"events.jsonl, line 2, is no event"):
        read_events(tmp_path)


def test_lines_are_whole_whenever_the_writer_is_killed(tmp_path):
    """And a reader that looks meanwhile never sees half of one."""
    (tmp_path / "events.jsonl").write_bytes(b"")

    def write():
        log = EventLog(tmp_path)
        while True:
            log.append("epoch", updates=1, row={"text": "x" * 500})
            time.sleep(0.0001)

    for k in range(20):
        pid = in_child(write)
        time.sleep(0.0005 * k)
        read_events(tmp_path)
        os.kill(pid, signal.SIGKILL)
        status_of(pid)
        assert {len(event["row"]["text"]) for event in read_events(tmp_path)} <= {500}


def test_a_disk_that_fills_up_leaves_whole_lines(tmp_path, monkeypatch):
    log = EventLog(tmp_path)
    log.append("started")
    write = os.write
    monkeypatch.setattr("os.write", lambda fd, line: write(fd, line[:7]))
    with pytest.raises(DataError, match="make room"):
        log.append("epoch")
    monkeypatch.undo()
    log.append("finished")
    assert [event["event"] for event in read_events(tmp_path)] == ["started", "finished"]
