"""What `checkpoint=` and `resume` refuse, warn of and leave alone.

That a resumed fit ends with the same bits is tested in `reliability/test_resume.py`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers import copied_params, same_params, tiny_dls, tiny_learner
from treadle.callbacks import (
    CheckpointCallback,
    CSVLogger,
    EMACallback,
    Every,
    GradientAccumulation,
)
from treadle.data import DataLoader, DataLoaders
from treadle.errors import DataError, UsageError
from treadle.loop import Callback
from treadle.metrics import accuracy
from treadle.run.checkpoint import checkpoints, read_checkpoint, write_checkpoint
from treadle.run.packed import pack, unpack


@pytest.fixture(autouse=True)
def no_flush(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda fd: None)


class Interrupted(Exception):
    pass


def interrupt_at(epoch: int, batch: int) -> Callback:
    def after_batch(cb: Callback) -> None:
        if cb.training and (cb.epoch, cb.iter) == (epoch, batch):
            raise Interrupted

    return Callback(after_batch=after_batch)


def interrupted(path: Path, **learner_kwargs):
    learn = tiny_learner(path=path, **learner_kwargs)
    with learn.no_logging(), pytest.raises(Interrupted):
        learn.fit(2, cbs=interrupt_at(1, 3), checkpoint=Every(updates=1))
    return learn


def test_without_a_checkpoint(tmp_path):
    with pytest.raises(DataError, match=r"there is no checkpoint in .*checkpoints; give"):
        tiny_learner(path=tmp_path).resume()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"model": nn.Sequential(nn.Linear(8, 4))},
            r"the model does not have .* missing: 2\.bias",
        ),
        (
            {"model": nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 4))},
            r"0\.weight has the shape \(16, 8\) in the checkpoint and \(9, 8\)",
        ),
        ({"cbs": EMACallback()}, r"callbacks of the checkpoint; .* not expected: ema\."),
        ({"default_cbs": False}, r"callbacks of the checkpoint; missing: recorder;"),
        ({"precision": "bf16"}, r'computed in fp32 .* make it with precision="fp32"'),
        (
            {"dls": DataLoaders(tiny_dls().train, device="cpu")},
            r"has 2 loaders and this learner 1",
        ),
    ],
)
def test_another_learner_is_refused_and_stays_as_it_was(wrong, said, tmp_path):
    interrupted(tmp_path)
    learn = tiny_learner(path=tmp_path, **wrong)
    before = copied_params(learn.model)
    with learn.no_logging(), pytest.raises(UsageError, match=said):
        learn.resume()
    assert same_params(learn.model, before)
    assert (learn.first_epoch, learn.first_iter, learn.call) == (0, 0, None)


def test_other_data_are_refused(tmp_path):
    x = torch.randn(40, 8)
    data = torch.utils.data.TensorDataset(x, x[:, :4].argmax(1))

    def dls(bs: int) -> DataLoaders:
        return DataLoaders(DataLoader(data, bs, device="cpu", num_workers=0), device="cpu")

    interrupted(tmp_path, dls=dls(8))
    learn = tiny_learner(path=tmp_path, dls=dls(10))
    with (
        learn.no_logging(),
        pytest.raises(UsageError, match=r"had 8 samples a batch .* has 10 here"),
    ):
        learn.resume()


def test_a_checkpoint_cannot_name_what_does_not_train(tmp_path):
    call = {"verb": "__init__", "kwargs": {}, "fit": 1}
    write_checkpoint(tmp_path / "checkpoints", 1, {}, {"state": {"call": call}})
    with pytest.raises(DataError, match=r"does not say which fit .*'__init__'.*fine_tune"):
        tiny_learner(path=tmp_path).resume()


def test_the_one_before_a_damaged_one_serves(tmp_path):
    whole = tiny_learner()
    with whole.no_logging():
        whole.fit(2)
    interrupted(tmp_path)
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    (newest / "model.safetensors").write_bytes(b"")
    learn = tiny_learner(path=tmp_path)
    with learn.no_logging(), pytest.warns(UserWarning, match="passed over: .*model.safetensors"):
        learn.resume()
    assert same_params(learn.model, copied_params(whole.model))
    assert learn.recorder.raw_losses == whole.recorder.raw_losses


def test_batches_of_a_list_are_passed_over(tmp_path):
    """And updates are planned by the size of a batch, which such loaders tell with the first."""
    whole = tiny_learner(cbs=GradientAccumulation(48))
    with whole.no_logging():
        whole.fit_one_cycle(2)
    learn = tiny_learner(path=tmp_path, cbs=GradientAccumulation(48))
    with learn.no_logging(), pytest.raises(Interrupted):
        learn.fit_one_cycle(2, cbs=interrupt_at(1, 4), checkpoint=Every(minutes=1e-9))
    again = tiny_learner(path=tmp_path, cbs=GradientAccumulation(48))
    with again.no_logging():
        again.resume()
    assert same_params(again.model, copied_params(whole.model))
    assert again.recorder.hypers == whole.recorder.hypers
    assert again.recorder.raw_losses == whole.recorder.raw_losses


def test_the_table_shows_the_epochs_that_are_over(tmp_path, capsys):
    interrupted(tmp_path)
    tiny_learner(path=tmp_path).resume()
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["epoch", "0", "1"]


def test_rows_that_are_appended_are_there_once(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,train_loss,valid_loss,time\n0,1.0,2.0,3.0\n")
    interrupted(tmp_path, cbs=CSVLogger(append=True))
    learn = tiny_learner(path=tmp_path, cbs=CSVLogger(append=True))
    with learn.no_logging():
        learn.resume()
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "0", "0", "1"]


def test_a_folder_and_the_number_that_stay(tmp_path):
    learn = tiny_learner(path=tmp_path)
    keep = CheckpointCallback(Every(epochs=1), tmp_path / "elsewhere", keep_last=3)
    with learn.no_logging():
        learn.fit(5, cbs=keep)
    found = checkpoints(tmp_path / "elsewhere")
    assert [path.name for path in found] == ["step-000024", "step-000032", "step-000040"]
    again = tiny_learner(path=tmp_path / "new")
    with again.no_logging():
        again.resume(tmp_path / "elsewhere")
    assert same_params(again.model, copied_params(learn.model))


class Moves(Callback):
    """Puts into the recorder what the epochs are to have been worth."""

    run_after = "Recorder"
    state_names = ()

    def __init__(self, column: int, values: list[float]) -> None:
        self.column, self.values = column, values

    def after_epoch(self):
        self.recorder.values[-1][self.column] = self.values[self.epoch]


def test_those_of_the_best_epochs_stay(tmp_path):
    worth = [0.5, 0.1, math.nan, 0.2, 0.9, 0.3]
    for monitor, column, kept in [("valid_loss", 1, [2, 4, 6]), ("accuracy", 2, [1, 5, 6])]:
        folder = tmp_path / monitor
        learn = tiny_learner(path=folder, metrics=accuracy, cbs=Moves(column, worth))
        keep = CheckpointCallback(keep_last=1, keep_best=2, monitor=monitor)
        with learn.no_logging():
            learn.fit(6, cbs=keep)
        found = checkpoints(folder / "checkpoints")
        assert [read_checkpoint(path).step // 8 for path in found] == kept
    with learn.no_logging(), pytest.raises(UsageError, match="'f1', which the recorder does not"):
        learn.fit(1, cbs=CheckpointCallback(keep_best=1, monitor="f1"))


def test_a_place_that_will_not_do_is_told_before_the_first_batch(tmp_path):
    (tmp_path / "checkpoints").write_text("a file of the user's")
    learn = tiny_learner(path=tmp_path)
    heard = Callback(before_batch=lambda cb: pytest.fail("a batch was trained"))
    with learn.no_logging(), pytest.raises(DataError, match=r"Cannot write .*step-000000"):
        learn.fit(1, cbs=heard, checkpoint=Every(epochs=1))


def test_a_rate_sweep_writes_none(tmp_path):
    learn = tiny_learner(path=tmp_path, cbs=CheckpointCallback(Every(updates=1)))
    learn.lr_find(num_it=5, show_plot=False)
    assert not (tmp_path / "checkpoints").exists()


class Counts(Callback):
    def before_fit(self):
        self.count = 0

    def after_step(self):
        self.count += 1


class Kept(Counts):
    state_names = ("count",)


class Told(Counts):
    state_names = ()


def test_a_count_that_nothing_keeps_is_warned_of(tmp_path):
    learn = tiny_learner(path=tmp_path, cbs=Counts())
    said = r"Counts changes count while it trains, .* state_names = \('count', \.\.\.\)"
    with learn.no_logging(), pytest.warns(UserWarning, match=said) as warned:
        learn.fit(2, checkpoint=Every(updates=3))
    assert len(warned) == 1


@pytest.mark.parametrize(("kind", "count"), [(Kept, 16), (Told, 5)])
def test_what_is_declared_is_kept(kind, count, tmp_path):
    interrupted(tmp_path, cbs=kind())
    learn = tiny_learner(path=tmp_path, cbs=kind())
    with learn.no_logging():
        learn.resume()
    assert learn.cbs[-1].count == count


class Strange(Callback):
    state_names = ("thing",)

    def before_fit(self):
        self.thing = object()


def test_what_a_checkpoint_does_not_hold_is_named(tmp_path):
    learn = tiny_learner(path=tmp_path, cbs=Strange())
    with (
        learn.no_logging(),
        pytest.raises(UsageError, match=r"fit\.callbacks\.strange\.thing is a"),
    ):
        learn.fit(1, checkpoint=Every(updates=1))


@pytest.mark.parametrize("wrong", [{}, {"updates": 0}, {"minutes": -1}, {"minutes": math.nan}])
def test_every_what(wrong):
    with pytest.raises(UsageError, match="give updates=, epochs= or minutes=, each above 0"):
        Every(**wrong)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.just(Path("a/b"))
    | st.just(slice(1, None, 0.5))
)
NESTED = st.recursive(
    SCALARS
    | st.sampled_from(
        [[0.1, -0.0, math.inf] * 12, [2**63 - 1, -5] * 20, [2**63] * 40, [1, 2.0] * 20]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$tensor", "$tuple", "$items"]), inner, max_size=1)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["a", "b"]), NESTED))
def test_packed_and_unpacked_is_the_same(state):
    tensors, values = pack(state)
    found = unpack(tensors, values)
    assert repr(found) == repr(state)


def test_tensors_and_arrays_come_back(tmp_path):
    t, a = torch.randn(3).bfloat16(), np.arange(3, dtype=np.uint32)
    found = unpack(*pack({"x": {"a.b": t, "a": {"b": a}}}))["x"]
    assert found["a.b"].equal(t)
    assert found["a"]["b"].dtype == a.dtype
    assert (found["a"]["b"] == a).all()


@pytest.mark.parametrize("wrong", [{"$tensor": "no such"}, {"$slice": 3}, {"$items": [1]}])
def test_what_was_not_packed_is_refused(wrong):
    with pytest.raises(DataError, match="has not the form in which it is written"):
        unpack({}, {"x": wrong})
