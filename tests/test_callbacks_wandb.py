"""What wandb keeps of a fit: the real package, offline, read back from the file that it writes."""

from __future__ import annotations

import json
import struct
import sys

import pytest

from helpers import tiny_learner
from treadle.callbacks import WandbCallback
from treadle.errors import UsageError
from treadle.loop import Callback
from treadle.metrics import accuracy


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """The package, which keeps all it writes in a folder of the test and calls nobody."""
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb-home"))
    (tmp_path / "wandb-home").mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    wandb = pytest.importorskip("wandb")
    yield wandb
    wandb.teardown()


def records(folder):
    """What the one `.wandb` file below a folder holds: LevelDB's log format, of protobufs."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.rglob("*.wandb")
    data, place, record, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # too little of the block is left for a header
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        part = data[place + 7 : place + 7 + length]
        place += 7 + length
        record = part if kind in (1, 2) else record + part
        if kind in (1, 4):
            found.append(wandb_internal_pb2.Record.FromString(record))
    return found


def history(wandb, folder):
    """The rows of a run, which ends here."""
    wandb.finish()
    wandb.teardown()  # the file is whole when wandb's own process has ended
    rows = [one.history for one in records(folder) if one.HasField("history")]
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in row.item}
        for row in rows
    ]


def logged(rows, name):
    return [(row["step"], row[name]) for row in rows if name in row]


def test_every_loss_and_hyper_by_step_and_the_table_by_epoch(wandb, tmp_path):
    learn = tiny_learner(metrics=accuracy, path=tmp_path)
    learn.fit_one_cycle(2, 0.1, cbs=WandbCallback(every=5, project="tests", config={"size": 3}))
    assert wandb.run.config["size"] == 3
    rows, recorder = history(wandb, tmp_path), learn.recorder
    assert logged(rows, "train/loss") == list(enumerate(recorder.raw_losses))
    assert logged(rows, "train/smooth_loss") == list(enumerate(recorder.losses))
    for name, values in recorder.hps.items():
        assert logged(rows, f"hyper/{name}") == list(enumerate(values))
    for column, name in enumerate(["train_loss", "valid_loss", "accuracy"]):
        expected = [(7, recorder.values[0][column]), (15, recorder.values[1][column])]
        assert logged(rows, f"epoch/{name}") == expected
    axes = {one.metric.step_metric for one in records(tmp_path) if one.HasField("metric")}
    assert "step" in axes


def test_the_users_own_run_and_logging_are_respected(wandb, tmp_path):
    """wandb's own step moves with each call: rows that name an earlier one would be dropped."""
    run = wandb.init(project="tests")
    learn = tiny_learner(path=tmp_path, cbs=WandbCallback(every=4, project="another"))
    learn.fit(1, cbs=Callback(before_step=lambda cb: wandb.log({"own": cb.iter})))
    learn.fit(1)
    assert wandb.run is run
    assert run.project == "tests"
    rows = history(wandb, tmp_path)
    assert [row["own"] for row in rows if "own" in row] == list(range(8))
    assert [step for step, _ in logged(rows, "train/loss")] == list(range(16))


def test_all_is_logged_when_the_fit_fails(wandb, tmp_path):
    def fail(cb):
        if cb.iter == 5:
            raise RuntimeError("no")

    learn = tiny_learner(path=tmp_path, cbs=[WandbCallback(), Callback(before_step=fail)])
    with pytest.raises(RuntimeError, match="no"):
        learn.fit(1)
    assert len(logged(history(wandb, tmp_path), "train/loss")) == 5


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r"pip install 'treadle\[wandb\]'"):
        tiny_learner(cbs=WandbCallback()).fit(1)
