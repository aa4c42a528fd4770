"""`treadle train` in several processes: one folder, one voice, and a run that goes on."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torchvision.models  # noqa: F401 - imported before the forks
from PIL import Image
from safetensors.torch import load_file

from helpers import tiny_learner
from ranks import on_ranks
from treadle.callbacks import CSVLogger, GradientLog, SaveModelCallback
from treadle.callbacks.events_log import EventsLog
from treadle.callbacks.logger import LoggerCallback
from treadle.callbacks.profiler import ProfilerCallback
from treadle.callbacks.progress import ProgressCallback
from treadle.cli import doctor, processes
from treadle.cli.main import run
from treadle.cli.resume import settings_of
from treadle.cli.running import check_same, shown
from treadle.cli.train import TrainSettings, check_device, check_devices, check_processes, shared
from treadle.errors import UsageError
from treadle.report import ReportCallback, collect, write_report
from treadle.run import new_run_folder, read_record, write_record
from treadle.run.events import EventLog, read_events
from treadle.run.lock import read_holder
from treadle.run.restart import begun_here, launched_by, launcher
from treadle.world import World, world

SMALL = "--size 32 --presize 32 --arch squeezenet1_1 --workers 0 --device cpu".split()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder with train/CLASS/* and val/CLASS/*: 22 and 6 noisy images of two classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, n in (("train", 11), ("val", 3)):
        for name, channel in (("red", 0), ("blue", 2)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def said_by(*argv: object) -> tuple[int, str, str]:
    """The exit status of the command in this process, and what it printed and complained of."""
    out, err = io.StringIO(), io.StringIO()
    # No launcher is here that would end a process while it waits.
    impatient = mock.patch.object(processes, "PATIENCE", 0.2)
    with redirect_stdout(out), redirect_stderr(err), impatient:
        status = run([str(arg) for arg in argv])
    return status, out.getvalue(), err.getvalue()


def one_run(folder: Path) -> dict[str, Path]:
    """The files of the only run in `folder`/runs, by name."""
    (only,) = (folder / "runs").iterdir()
    return {path.name: path for path in only.iterdir()}


# One folder, one voice


def test_only_the_main_process_prints_and_writes(images, tmp_path):
    with chdir(tmp_path):
        first, second = on_ranks(2, said_by, "train", images, "--global-bs", 6, "-e", 2, *SMALL)
    assert first[0] == second[0] == 0 and second[1:] == ("", "")
    assert first[1].startswith("22 images to train on, 6 to validate on, 2 classes; squeezenet1_1")
    assert first[1].count("valid_loss") == first[1].count("report   ") == 1
    files = one_run(tmp_path)
    config = json.loads(files["config.json"].read_text())
    assert [config[name] for name in ("processes", "global_bs", "bs")] == [2, 6, 3]
    with files["history.csv"].open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]
    events = [event["event"] for event in read_events(files["history.csv"].parent)]
    assert events[0] == "started" and events[-1] == "finished" and events.count("epoch") == 2
    record = read_record(files["record.json"].parent)
    assert record.config["processes"] == 2 and len(record.losses) == 2 * (22 // 6)
    assert sum(map(sum, record.confusion.matrix)) == 6
    assert load_file(files["model.safetensors"])
    told = io.StringIO()
    with redirect_stdout(told):
        assert run(["runs", str(tmp_path / "runs")]) == 0
        assert run(["info", str(files["history.csv"].parent)]) == 0
    assert "procs" in told.getvalue() and "processes" in told.getvalue()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("train --epoch 1", "Unknown option"),
        ("train --bs 4 --global-bs 8", "say one thing in two ways"),
        ("train --device cuda:1", "--device cuda:1 is one device, and torchrun started 2"),
        ("train nowhere --device cpu", "there is no folder"),
        ("compare", "compare is for one process"),
    ],
)
def test_a_mistake_is_told_once_by_the_main_process(argv, sentence, tmp_path):
    with chdir(tmp_path):
        first, second = on_ranks(2, said_by, *argv.split())
    assert first[0] == second[0] == 2
    assert first[2].startswith("treadle: ") and first[2].count("\n") == 1
    assert sentence in " ".join(first[2].split())
    assert second[2].startswith("treadle: rank 1: ")  # it would have been ended before
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_torchrun_is_told_the_cause(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert said_by("train", "--bs", "0")[0] == 2
    told = json.loads((tmp_path / "error.json").read_text())["message"]
    assert "--bs 0 cannot be meant" in told["message"] == told["extraInfo"]["py_callstack"]


# Going on


def torchrun(folder: Path, *argv: object) -> subprocess.Popen[str]:
    """The command in two processes that torchrun starts again once."""
    launch = "-m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=1 -m treadle"
    paths = [str(Path(path).resolve()) for path in sys.path if path]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        [sys.executable, *launch.split(), *map(str, argv)],
        cwd=folder,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_killed_processes_are_started_again_and_go_on(images, tmp_path):
    """To the same bits as those of a run that nobody disturbed, in the same folder."""
    (tmp_path / "whole").mkdir()
    args = ["train", images, "--bs", "4", "-e", "8", *SMALL]
    launched = torchrun(tmp_path, *args)
    holder = None
    try:
        while launched.poll() is None and holder is None:
            time.sleep(0.01)
            for folder in tmp_path.glob("runs/*"):
                written = [e for e in read_events(folder) if e["event"] == "checkpoint"]
                holder = read_holder(folder) if len(written) > 1 else None
        assert holder is not None, launched.communicate()
        os.kill(holder.pid, signal.SIGKILL)
        out, err = launched.communicate(timeout=120)
    finally:
        if launched.poll() is None:
            launched.terminate()  # which ends its processes too
            launched.wait(60)
    assert launched.returncode == 0, err
    assert out.count("22 images to train on") == 2 and out.count("report   ") == 1
    again = one_run(tmp_path)
    events = read_events(again["history.csv"].parent)
    begun = [event for event in events if event["event"] in ("started", "resumed")]
    assert [event["event"] for event in begun] == ["started", "resumed"]
    assert begun[0]["launcher"] == begun[1]["launcher"] != ""
    with again["history.csv"].open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == [str(n) for n in range(8)]
    with chdir(tmp_path / "whole"):
        on_ranks(2, said_by, *args)
    whole = one_run(tmp_path / "whole")
    assert again["model.safetensors"].read_bytes() == whole["model.safetensors"].read_bytes()


def test_one_process_goes_on_with_what_two_began(images, tmp_path):
    args = ["train", images, "--bs", 3, "-e", 6, "--max-time", "0.1s", *SMALL]
    with chdir(tmp_path):
        first, second = on_ranks(2, said_by, *args)
    folder = next((tmp_path / "runs").iterdir())
    assert first[0] == second[0] == 75
    assert "torchrun --nproc-per-node=2 -m treadle resume runs" in first[2]
    assert second[1:] == ("", "")
    assert said_by("resume", folder)[0] == 0
    events = read_events(folder)
    assert [e["processes"] for e in events if e["event"] == "resumed"] == [1]
    assert events[-1] == {**events[-1], "event": "finished", "updates": 6 * (22 // 6)}
    assert len(read_record(folder).rows) == 6


def test_a_run_that_was_left_when_asked_is_not_taken_up_by_the_launcher(images, tmp_path):
    """torchrun takes the exit status of a time limit for a failure, and starts all again."""
    args = ["train", images, "-e", 5, "--max-time", "0.1s", *SMALL]
    with chdir(tmp_path):
        left = on_ranks(2, said_by, *args)
        before = read_events(next((tmp_path / "runs").iterdir()))
        again = on_ranks(2, said_by, *args)
    assert [status for status, *_ in left] == [status for status, *_ in again] == [75, 75]
    assert read_events(next((tmp_path / "runs").iterdir())) == before


def test_what_died_before_its_first_checkpoint_begins_anew_in_its_folder(images, tmp_path):
    args = ["train", images, "--bs", 8, "-e", 1, *SMALL]
    with chdir(tmp_path):
        on_ranks(1, said_by, *args)
        whole = one_run(tmp_path)
        weights = whole["model.safetensors"].read_bytes()
        shutil.rmtree(whole["checkpoints"])
        started, *_ = whole["events.jsonl"].read_bytes().splitlines(keepends=True)
        whole["events.jsonl"].write_bytes(started)
        for name in ("history.csv", "model.safetensors", "record.json", "report.html"):
            whole[name].unlink()
        on_ranks(1, said_by, *args)
    assert one_run(tmp_path)["model.safetensors"].read_bytes() == weights


def test_a_run_is_found_by_who_launched_it(tmp_path, monkeypatch):
    assert launcher() == "" and begun_here(root=tmp_path) is None
    with monkeypatch.context() as launched:
        launched.setenv("TORCHELASTIC_RUN_ID", "none")
        mine = launcher()
    for name, by in (("2026-01-01", mine), ("2026-01-02", "elsewhere 1 2"), ("empty", None)):
        (tmp_path / name).mkdir()
        if by is not None:
            EventLog(tmp_path / name).append("started", launcher=by)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert begun_here(root=tmp_path) == tmp_path / "2026-01-01"
    assert begun_here(tmp_path / "2026-01-02") is begun_here(tmp_path / "nowhere") is None
    (tmp_path / "empty" / "events.jsonl").write_text("damaged\n")
    assert launched_by(tmp_path / "empty") == ""


# Settings


def test_a_config_says_what_any_number_of_processes_needs():
    args = shared(TrainSettings("x", bs=5))
    assert (args.bs, args.global_bs) == (5, 5)
    old = settings_of({"path": "x", "bs": 5}, Path("config.json"))  # of before there were several
    assert shared(old).global_bs == 5
    of_two = {"path": "x", "bs": 4, "global_bs": 7, "processes": 2, "sync_bn": False}
    taken_up = shared(settings_of(of_two, Path("config.json")))
    assert (taken_up.bs, taken_up.global_bs) == (7, 7)
    check_same(of_two, {**of_two, "bs": 7, "processes": 1})
    check_same({"bs": 7}, {"bs": 7, "global_bs": 7, "processes": 1, "sync_bn": False})
    with pytest.raises(UsageError, match="global_bs is 14 and was 7"):
        check_same(of_two, {**of_two, "global_bs": 14})
    assert shown(of_two) == {**of_two, "parallel": "ddp"}
    assert shown({**of_two, "processes": 1}) == {"path": "x", "bs": 4}


def test_what_cannot_be_meant_of_one_process():
    with pytest.raises(UsageError, match="--parallel fsdp is for several processes; start them"):
        check_processes(TrainSettings(parallel="fsdp"))
    check_device("cpu")


def test_several_processes_need_a_gpu_each_or_the_cpu(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in (None, "cuda"):
        with pytest.raises(UsageError, match="4 processes on a machine with 2 GPUs; start one"):
            check_devices(name)
    check_devices("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    check_devices(None)


def test_doctor_tells_of_processes(monkeypatch):
    assert "gloo" in doctor.backends().told and doctor.backends().verdict == "ok"
    assert doctor.launch().verdict == "none"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert doctor.launch().told == "it started 4 processes, of which this is 0"


# The library, called by an unchanged script


def _script(root: Path) -> tuple[Path, str, list[str], list[Path]]:
    """What a user's script does, and what this process saw of it."""
    out = io.StringIO()
    with redirect_stdout(out), chdir(root):
        folder = new_run_folder("mine", root="runs")
        learn = tiny_learner(path=folder, cbs=GradientLog())
        learn.lr_find(show_plot=False, num_it=20)
        learn.fit(2, cbs=[CSVLogger(), SaveModelCallback()])
        record = collect(learn, "mine")
        written = [write_record(folder, record), write_report(record, folder / "report.html")]
        written.append(learn.recorder.to_csv(folder / "table.csv"))
        learn.show_training_loop()
        EventLog(folder).append("done")
    losses = [f"{loss:.6f}" for loss in learn.recorder.losses]
    assert learn.gradient_log.norms.shape == (16, 4)
    return folder, out.getvalue(), losses, written


def test_an_unchanged_script_leaves_one_run(tmp_path):
    first, second = on_ranks(2, _script, tmp_path)
    assert first[0] == second[0] and first[2:] == second[2:]
    assert first[1].count("valid_loss") == 1 and "before_fit" in first[1] and second[1] == ""
    names = {path.name for path in (tmp_path / first[0]).iterdir()}
    files = "history.csv models record.json report.html table.csv events.jsonl"
    assert names == set(files.split())
    assert len(read_events(tmp_path / first[0])) == 1


def test_what_writes_or_prints_is_heard_in_the_main_process_alone():
    writers = CSVLogger, EventsLog, LoggerCallback, ProfilerCallback, ProgressCallback
    assert all(cb.on_main for cb in (*writers, ReportCallback))
    assert not SaveModelCallback.on_main  # whose weights all gather


def _gradients(parallel: str) -> tuple[torch.Tensor, torch.Tensor]:
    learn = tiny_learner(cbs=GradientLog(), parallel=parallel)
    with learn.no_logging():
        learn.fit(1)
    return learn.gradient_log.norms, learn.recorder.raw_losses


def test_the_gradient_log_has_the_norms_of_whole_gradients():
    (ddp, _), (other, _) = on_ranks(2, _gradients, "ddp")
    (fsdp, _), _ = on_ranks(2, _gradients, "fsdp")
    assert torch.equal(ddp, other)
    torch.testing.assert_close(fsdp, ddp, rtol=1e-5, atol=1e-7)


def test_in_one_process_nothing_is_different():
    assert world() == World()
    assert processes.rank() == 0 and processes.processes() == 1 and processes.command() == "treadle"
    with warnings.catch_warnings(record=True) as seen, processes.in_one_voice(["train"]):
        warnings.simplefilter("always")
        warnings.warn("heard", stacklevel=1)
    assert len(seen) == 1
