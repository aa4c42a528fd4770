"""What TensorBoard reads of a fit: by the reader of the real tensorboard package."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import tiny_learner
from treadle.callbacks import Recorder, TensorBoardCallback
from treadle.errors import CallbackError, UsageError
from treadle.loop import Callback, CancelFitException
from treadle.metrics import accuracy

pytest.importorskip("tensorboard")


def read(folder):
    """Each curve in the event files of a folder: {name: [(step, value), ...]}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    names = reader.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in reader.Scalars(name)] for name in names}


def curve(values, start=0):
    """What a list of numbers is when it has been float32, a point a step."""
    return [(start + i, pytest.approx(value, rel=1e-6)) for i, value in enumerate(values)]


@pytest.mark.parametrize("every", [1, 3, 50])
def test_every_loss_and_hyper_by_step_and_the_table_by_epoch(tmp_path, every):
    learn = tiny_learner(metrics=accuracy, path=tmp_path)
    learn.fit_one_cycle(2, 0.1, cbs=TensorBoardCallback("logs/one", every=every))
    curves, recorder = read(tmp_path / "logs" / "one"), learn.recorder
    assert curves.pop("train/loss") == curve(recorder.raw_losses)
    assert curves.pop("train/smooth_loss") == curve(recorder.losses)
    for column, name in enumerate(["train_loss", "valid_loss", "accuracy"]):
        values = [row[column] for row in recorder.values]
        expected = [(7, pytest.approx(values[0], rel=1e-6)), (15, pytest.approx(values[1]))]
        assert curves.pop(f"epoch/{name}") == expected
    assert len(recorder.hps["lr"]) == 16
    assert curves == {f"hyper/{name}": curve(values) for name, values in recorder.hps.items()}


def test_fits_with_one_callback_are_one_curve(tmp_path):
    board = TensorBoardCallback()
    learn = tiny_learner(path=tmp_path, cbs=board)
    learn.fit(1)
    first = list(learn.recorder.raw_losses)
    learn.fit(2)
    (folder,) = (tmp_path / "tensorboard").iterdir()
    curves = read(folder)
    assert curves["train/loss"] == curve(first + learn.recorder.raw_losses)
    assert [step for step, _ in curves["epoch/valid_loss"]] == [7, 15, 23]


def test_another_callback_is_another_run(tmp_path):
    for _ in range(2):
        tiny_learner(path=tmp_path).fit(1, cbs=TensorBoardCallback())
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


class EndAt(Callback):
    """Ends the fit in epoch 1, batch 3, by an exception."""

    def __init__(self, error):
        self.error = error

    def before_step(self):
        if (self.epoch, self.iter) == (1, 3):
            raise self.error


@pytest.mark.parametrize("error", [CancelFitException, KeyboardInterrupt, RuntimeError("no")])
def test_all_is_written_however_the_fit_ends(tmp_path, error):
    learn = tiny_learner(path=tmp_path, cbs=[TensorBoardCallback("run"), EndAt(error)])
    try:
        learn.fit(3)
    except (KeyboardInterrupt, RuntimeError) as raised:
        assert raised is error or raised.__class__ is error
    curves = read(tmp_path / "run")
    assert len(learn.recorder.raw_losses) == 8 + 3
    assert curves["train/loss"] == curve(learn.recorder.raw_losses)
    assert len(curves["epoch/valid_loss"]) == 1


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from helpers import tiny_learner
from treadle.callbacks import TensorBoardCallback
from treadle.loop import Callback

def die(cb):
    if (cb.epoch, cb.iter) == (1, 6):
        os.kill(os.getpid(), signal.SIGKILL)

board = TensorBoardCallback("run", every=3)
tiny_learner(path=sys.argv[2], cbs=[board, Callback(before_step=die)]).fit(5)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_after_a_kill_the_written_groups_are_there(tmp_path):
    tests = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", KILLED, tests, str(tmp_path)], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert len(read(tmp_path / "run")["train/loss"]) == 8 + 6


def test_training_is_not_waited_for_within_a_group(tmp_path, monkeypatch):
    learn = tiny_learner(path=tmp_path, cbs=TensorBoardCallback(every=4))
    reads, seen, tolist = [], [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: (reads.append(t), tolist(t))[1])
    learn.add_cb(Callback(before_step=lambda cb: seen.append(len(reads))))
    with learn.no_bar():
        learn.fit(1)
    assert len(reads[0]) == 4
    assert [count - seen[0] for count in seen] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_each_parameter_group_has_its_curves(tmp_path):
    groups = {"splitter": lambda m: [list(m[0].parameters()), list(m[2].parameters())]}
    learn = tiny_learner(path=tmp_path, cbs=TensorBoardCallback("run"), **groups)
    learn.fit_one_cycle(1, slice(0.01, 0.1))
    curves = read(tmp_path / "run")
    for g, hypers in enumerate(learn.recorder.hypers):
        assert curves[f"hyper/lr_{g}"] == curve(hypers["lr"])
    assert curves["hyper/lr_0"][3][1] < curves["hyper/lr_1"][3][1]


def test_losses_that_are_no_numbers_are_written(tmp_path):
    learn = tiny_learner(path=tmp_path, lr=1e38, cbs=TensorBoardCallback("run"))
    learn.fit(1)
    losses = [value for _, value in read(tmp_path / "run")["train/loss"]]
    assert len(losses) == 8
    assert not all(map(math.isfinite, losses))


def test_sweeps_validations_and_predictions_are_not_written(tmp_path):
    learn = tiny_learner(path=tmp_path, cbs=TensorBoardCallback())
    learn.lr_find(num_it=20, show_plot=False)
    learn.validate()
    learn.get_preds()
    assert not list(tmp_path.iterdir())


def test_a_hyper_that_is_no_number_is_left_out(tmp_path):
    def spoil(cb):
        cb.recorder.hypers[0]["kind"] = ["cosine"] * 8

    learn = tiny_learner(path=tmp_path, cbs=TensorBoardCallback("run"))
    learn.fit(1, cbs=Callback(after_train=spoil))
    assert "hyper/lr" in read(tmp_path / "run")


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"every=0 is below 1"):
        TensorBoardCallback(every=0)
    learn = tiny_learner(path=tmp_path, cbs=TensorBoardCallback())
    with learn.removed_cbs(Recorder), pytest.raises(CallbackError, match="reads the Recorder"):
        learn.fit(1)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'treadle\[tensorboard\]'"):
        learn.fit(1)
    assert not list(tmp_path.iterdir())


def test_importing_the_callback_does_not_import_tensorboard():
    code = "import sys, treadle.callbacks; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"tensorboard", "wandb", "mlflow"} & set(done.stdout.split())
