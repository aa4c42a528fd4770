"""`treadle runs`, `info`, `resume` and `doctor`: what they say of runs in every state."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import treadle.cli.doctor
from treadle.cli.main import run
from treadle.cli.running import check_same, read_minutes
from treadle.errors import UsageError
from treadle.run import write_checkpoint, write_json
from treadle.run.events import EventLog
from treadle.run.folder import HOLDER
from treadle.run.lock import sole_writer
from treadle.run.status import read_status

CONFIG = {"command": "train", "path": "digits", "epochs": 3, "environment": {"torch": "2.15.0"}}
HISTORY = "epoch,train_loss,valid_loss,accuracy,time\n0,0.9,0.8,0.75,1.5\n1,0.5,0.6,0.625,1.5\n"


def make_run(folder: Path, *events: str, history: str = HISTORY, **facts: object) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG)
    (folder / "history.csv").write_text(history)
    for event in events:
        EventLog(folder).append(event, updates=46, **facts)
    return folder


def said(capsys, *argv: object) -> str:
    capsys.readouterr()
    assert run([str(arg) for arg in argv]) == 0
    return capsys.readouterr().out


def test_the_state_of_a_run_is_that_of_its_last_event(tmp_path):
    cases = [
        (["started"], "interrupted", "its process was killed"),
        (["started", "epoch", "checkpoint"], "interrupted", "its process was killed"),
        (["started", "left"], "interrupted", "SIGTERM"),
        (["started", "left", "resumed"], "interrupted", "its process was killed"),
        (["started", "error"], "failed", "SIGTERM"),
        (["started", "error", "resumed", "finished"], "finished", "SIGTERM"),
        ([], "unknown", ""),
    ]
    for i, (events, state, why) in enumerate(cases):
        status = read_status(make_run(tmp_path / str(i), *events, reason="SIGTERM"))
        assert (status.state, status.why) == (state, why)


def test_a_run_is_running_while_its_process_lives(tmp_path):
    folder = make_run(tmp_path / "run", "started")
    hold = "import sys, time; from treadle.run.lock import sole_writer\n"
    hold += "with sole_writer(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", hold, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        status = read_status(folder)
        assert (status.state, status.holder.pid) == ("running", process.pid)
        process.kill()
    assert (folder / HOLDER).exists()
    assert (read_status(folder).state, read_status(folder).holder) == ("interrupted", None)


def test_runs_lists_the_newest_first_with_best_and_last(tmp_path, capsys):
    for i, (name, events) in enumerate(
        [("old", ["started", "finished"]), ("failed-run", ["started", "error"]), ("new", [])]
    ):
        folder = make_run(tmp_path / "runs" / name, *events)
        os.utime(folder / "config.json", (1e9 + i, 1e9 + i))
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "failed-run" / "events.jsonl").write_text("no event\n")
    shown = said(capsys, "runs", tmp_path / "runs")
    rows = [line.split() for line in shown.splitlines() if "/" in line or "damaged" in line]
    assert [row[0] for row in rows] == ["new", "failed-run", "old"]
    assert rows[0][1:] == ["unknown", "2/3", "0.75", "0.625", "0.0", "MB"]
    assert rows[1][1] == "damaged"
    assert rows[2][1:5] == ["0", "min", "finished", "2/3"]


def test_where_less_is_better_the_best_is_the_least(tmp_path, capsys):
    make_run(tmp_path / "run", history="epoch,train_loss,valid_loss,time\n0,1,0.25,1\n1,1,0.5,1\n")
    assert re.search(r"1?/3 +0\.25 +0\.5 ", said(capsys, "runs", tmp_path))


def test_info_tells_state_settings_and_which_checkpoints_are_whole(tmp_path, capsys):
    folder = make_run(tmp_path / "run", "started", "left", reason="SIGTERM")
    for step in (100, 200):
        weights = {"model": {"weight": torch.ones(1000)}}
        path = write_checkpoint(folder / "checkpoints", step, weights, {})
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    shown = said(capsys, "info", folder)
    for words in (
        r"state +interrupted: SIGTERM",
        r"epochs +2 of 3",
        rf"go on +treadle resume {folder}",
        r"path +digits",
        r"torch +2\.15\.0",
        r"step-000100 +whole, 0\.0 MB, 0 min ago",
        r"step-000200 +damaged: .*model\.safetensors is damaged",
        r"1 +0\.500000 +0\.600000 +0\.625000 +1\.5 s",
    ):
        assert re.search(words, shown), words


def test_no_name_can_command_the_terminal(tmp_path, capsys):
    evil = "\x1b[2J\x1b]0;owned\x07[red]a\nb"
    folder = make_run(
        tmp_path / "runs" / evil.replace("\n", ""), "started", "error", error=evil, reason=evil
    )
    write_json(folder / "config.json", {**CONFIG, "path": evil, evil: [evil], "epochs": evil})
    (folder / "history.csv").write_text(HISTORY.replace("accuracy", "\x1b[31macc"))
    shown = said(capsys, "runs", tmp_path / "runs") + said(capsys, "info", folder)
    assert "\\x1b[2J" in shown
    assert "[red]" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)
    assert run(["resume", str(folder / evil)]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("columns", [80, 120])
def test_the_tables_fit_the_terminal(columns, tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "2026-11-22_21-10-21-some-data-set-mobilenet_v3_small", "started", "error")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    shown = said(capsys, "runs", tmp_path)
    assert "failed" in shown
    assert (
        max(len(re.sub(r"\x1b\[[\d;?]*[a-z]", "", line)) for line in shown.splitlines()) <= columns
    )


# Resume


def test_a_finished_run_says_so(tmp_path, capsys):
    folder = make_run(tmp_path / "run", "started", "finished")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.name[0] != "."}
    assert "The run is finished" in said(capsys, "resume", folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.name[0] != "."}


def test_a_comparison_is_not_resumed_but_repeated(tmp_path, capsys):
    (tmp_path / "comparison.json").write_text("{}")
    assert run(["resume", str(tmp_path)]) == 2
    assert "treadle compare" in capsys.readouterr().err


def test_a_held_run_is_not_resumed(tmp_path, capsys):
    folder = make_run(tmp_path / "run", "started")
    with sole_writer(folder):
        assert run(["resume", str(folder)]) == 2
    assert f"process {os.getpid()} on {platform.node()}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", "3"), ("lr", "nan"), ("precision", "fp8"), ("opt", ["adam"])]
)
def test_a_setting_of_another_kind_is_named(name, value, tmp_path, capsys):
    folder = make_run(tmp_path / "run", "started")
    write_json(folder / "config.json", {**CONFIG, name: value})
    assert run(["resume", str(folder)]) == 2
    assert f"config.json: {name} is " in capsys.readouterr().err


def test_settings_or_data_that_changed_are_named():
    begun = {"epochs": 3, "train_images": 24, "train_files": "1a", "workers": 2}
    check_same(begun, {**begun, "workers": 0, "environment": {}})
    with pytest.raises(UsageError, match=r"epochs is 4 and was 3\. Put it back"):
        check_same(begun, {**begun, "epochs": 4})
    with pytest.raises(UsageError, match=r"train_images is 23 and was 24; .* renamed or changed"):
        check_same(begun, {**begun, "train_images": 23, "train_files": "2b"})


@pytest.mark.parametrize("text", ["", "soon", "0", "-3m", "3d", "1h30", "30 m", "m", "1e3", "inf"])
def test_a_time_limit_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="--max-time"):
        read_minutes(text)


# Doctor


def test_doctor_finds_this_machine_well(capsys):
    shown = said(capsys, "doctor")
    for name in ("treadle", "torch", "compiler", "cpu", "memory", "cache", "here", "jpeg"):
        assert re.search(rf"^ok +{name} ", shown, re.MULTILINE), name
    assert shown.endswith("Nothing is broken.\n")


def test_doctor_says_what_is_broken_and_what_to_do(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(treadle.cli.doctor, "_NEEDED", ["torch", "no_such_package"])
    monkeypatch.setattr(treadle.cli.doctor, "_EXTRAS", {"no-such-extra": "extra"})
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path / "file" / "home"))
    (tmp_path / "file").write_text("")
    assert run(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"broken +no_such_package +not installed\n +pip install", shown)
    assert re.search(r"broken +cache .*not writable\n +set TREADLE_HOME", shown)
    assert re.search(r"none +extra +optional\n +pip install 'treadle\[extra\]'", shown)
    assert shown.endswith("Broken: no_such_package, cache.\n")


def test_doctor_without_a_compiler_is_slow_but_not_broken(capsys, monkeypatch):
    def absent(*_):
        from treadle.native import NoCompiler

        raise NoCompiler("no C compiler (cc, gcc or clang) is on the PATH")

    monkeypatch.setattr("treadle.native.build", absent)
    shown = said(capsys, "doctor")
    assert re.search(r"slow +compiler +no C compiler.*\n +install gcc or clang", shown)


def test_events_are_json_for_others_too(tmp_path):
    folder = make_run(tmp_path / "run", "started", "finished")
    lines = (folder / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["started", "finished"]
    assert all(re.fullmatch(r"[\d-]+T[\d:.]+\+00:00", json.loads(x)["time"]) for x in lines)
