"""Callbacks that act on a column of the recorder: on real fits whose metric follows a script."""

from __future__ import annotations

import math
import operator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import copied_params, same_params, tiny_dls, tiny_learner
from treadle.callbacks import (
    EarlyStoppingCallback,
    ProgressCallback,
    Recorder,
    ReduceLROnPlateau,
    SaveModelCallback,
    TrackerCallback,
)
from treadle.callbacks.tracker import natural_comp
from treadle.data import DataLoaders
from treadle.errors import CallbackError, UsageError
from treadle.loop import Callback, CancelValidException
from treadle.metrics import Metric, accuracy, mae

NAN = math.nan


class Scripted(Metric):
    """A metric that gives the next value of a script at each validation."""

    def __init__(self, values, name="score"):
        self.values, self.name, self.passes = list(values), name, 0

    def reset(self):
        pass

    def accumulate(self, learn):
        if learn.iter == 0:
            self.passes += 1

    @property
    def value(self):
        return self.values[(self.passes - 1) % len(self.values)]


def scripted_learner(values, name="score", **kwargs):
    return tiny_learner(metrics=Scripted(values, name), **kwargs)


class Snapshots(Callback):
    """The parameters and the rate after each epoch."""

    order = 99

    def before_fit(self):
        self.params, self.lr_after = [], []

    def after_epoch(self):
        self.params.append(copied_params(self.model))
        self.lr_after.append([hypers["lr"] for hypers in self.opt.hypers])


# The column and what is better


@pytest.mark.parametrize(
    ("name", "smaller"),
    [
        ("train_loss", True),
        ("valid_loss", True),
        ("error_rate", True),
        ("mse", True),
        ("mae", True),
        ("accuracy", False),
        ("top_k_accuracy", False),
    ],
)
def test_what_is_better_goes_by_the_name(name, smaller):
    assert natural_comp(name)(0.1, 0.2) is smaller
    assert natural_comp(name)(0.2, 0.1) is not smaller
    assert not natural_comp(name)(0.1, 0.1)


@pytest.mark.parametrize(
    "make", [TrackerCallback, EarlyStoppingCallback, SaveModelCallback, ReduceLROnPlateau]
)
def test_an_unknown_column_is_refused_before_the_first_epoch(make):
    learn = tiny_learner(metrics=[accuracy, mae])
    before = copied_params(learn.model)
    with pytest.raises(UsageError, match="it has train_loss, valid_loss, accuracy, mae"):
        learn.fit(1, cbs=make(monitor="acuracy"))
    assert same_params(learn.model, before)
    with pytest.raises(UsageError, match="'epoch'"):
        learn.fit(1, cbs=make(monitor="epoch"))


def test_a_column_that_nothing_fills_is_refused():
    learn = tiny_learner(dls=DataLoaders(tiny_dls().train, device="cpu"))
    with pytest.raises(UsageError, match="no validation data; give some, or monitor train_loss"):
        learn.fit(1, cbs=TrackerCallback())
    tracker = TrackerCallback("train_loss")
    learn.fit(2, cbs=tracker)
    assert tracker.best == learn.recorder.values[-1][0]


def test_a_learner_without_recorder_is_refused():
    learn = tiny_learner(default_cbs=False)
    with pytest.raises(CallbackError, match="reads the Recorder"):
        learn.fit(1, cbs=TrackerCallback())


def follow(values, **kwargs):
    """The tracker's new_best by epoch, and the tracker."""
    learn = scripted_learner(values)
    tracker = TrackerCallback(monitor="score", **kwargs)
    news = []
    watch = type("Watch", (Callback,), {"order": 99})(
        after_epoch=lambda cb: news.append(tracker.new_best)
    )
    with learn.no_logging():
        learn.fit(len(values), cbs=[tracker, watch])
    return news, tracker


def test_min_delta_is_how_much_better_a_value_must_be():
    assert follow([1.0, 1.4, 1.6, 2.0], min_delta=0.5)[0] == [True, False, True, False]
    down = follow([2.0, 1.6, 1.4, 1.0], min_delta=0.5, comp=operator.lt)[0]
    assert down == [True, False, True, False]
    assert follow([2.0, 1.6, 1.4], min_delta=0.5, comp=np.less)[0] == [True, False, True]


def test_what_is_not_finite_is_never_best():
    news, tracker = follow([NAN, math.inf, 1.0, NAN, 2.0, math.inf])
    assert news == [False, False, True, False, True, False]
    assert tracker.best == 2.0
    # A comparison that NaN would win
    news, tracker = follow([1.0, NAN], comp=lambda new, best: not new <= best)
    assert (news, tracker.best) == ([True, False], 1.0)


@given(values=st.lists(st.floats(-10, 10) | st.just(NAN), min_size=1, max_size=12))
def test_the_best_is_the_first_greatest_and_wait_counts_from_it(values):
    """The tracker alone, driven as a fit would."""
    learn = tiny_learner(metrics=Scripted([0.0]), default_cbs=False)
    learn.add_cb(Recorder([Scripted([0.0])]))
    tracker = TrackerCallback("score")
    learn.add_cb(tracker)
    tracker.before_fit()
    for value in values:
        learn.recorder.values.append([0.0, 0.0, value])
        tracker.after_epoch()
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        assert tracker.best == max(finite)
        assert tracker.wait == len(values) - 1 - values.index(max(finite))
    else:
        assert tracker.best is None
        assert tracker.wait == len(values)


def test_reset_on_fit():
    learn = scripted_learner([3.0, 1.0, 2.0, 2.5])
    for reset, best in [(True, 2.5), (False, 3.0)]:
        learn.recorder.metrics[0].passes = 0
        tracker = TrackerCallback("score", reset_on_fit=reset)
        learn.fit(2, cbs=tracker)
        learn.fit(2, cbs=tracker)
        assert tracker.best == best


def test_an_epoch_that_was_not_validated_does_not_count():
    class EverySecond(Callback):
        def before_validate(self):
            if self.epoch % 2:
                raise CancelValidException

    learn = tiny_learner(metrics=accuracy, lr=0.0)
    learn.fit(5, cbs=[EverySecond(), EarlyStoppingCallback("accuracy", patience=2)])
    assert [row[1] is None for row in learn.recorder.values] == [False, True, False, True, False]


def test_trackers_stay_out_of_a_rate_sweep(tmp_path):
    learn = tiny_learner(path=tmp_path, cbs=[EarlyStoppingCallback(), SaveModelCallback()])
    learn.lr_find(num_it=30, show_plot=False)
    assert not list(tmp_path.iterdir())
    assert learn.early_stopping in learn.cbs


# Early stopping


@pytest.mark.parametrize(
    ("values", "patience", "epochs"),
    [
        ([1, 2, 3, 4], 1, 4),
        ([1, 2, 2, 4], 1, 3),
        ([1, 2, 2, 3, 3, 3, 9], 2, 6),
        ([5, 4, 3, 2, 9], 3, 4),
        ([NAN, NAN, NAN, 1], 2, 2),
        ([1, 0, 2, 3], 0, 2),
    ],
)
def test_early_stopping(values, patience, epochs, capsys):
    learn = scripted_learner([float(v) for v in values])
    fit_ended = []
    learn.add_cb(Callback(after_fit=fit_ended.append))
    learn.fit(len(values), cbs=EarlyStoppingCallback("score", patience=patience))
    assert len(learn.recorder.values) == epochs
    assert len(fit_ended) == 1
    assert ("stopped" in capsys.readouterr().out) == (epochs < len(values))


def test_early_stopping_is_silent_where_the_learner_is(capsys):
    learn = scripted_learner([1.0])
    with learn.no_logging():
        learn.fit(3, cbs=EarlyStoppingCallback("score"))
    assert len(learn.recorder.values) == 2
    assert capsys.readouterr().out == ""


# Saving the best


def test_the_best_is_saved_and_loaded(tmp_path):
    learn = scripted_learner([1.0, 3.0, 2.0, NAN], path=tmp_path)
    snapshots = Snapshots()
    keep = SaveModelCallback("score", fname="best")
    learn.fit(4, cbs=[keep, snapshots])
    assert keep.last_saved_path == tmp_path / "models" / "best.safetensors"
    assert same_params(learn.model, snapshots.params[1])
    assert not same_params(learn.model, snapshots.params[3])
    with torch.no_grad():
        next(learn.model.parameters()).zero_()
    learn.load("best")
    assert same_params(learn.model, snapshots.params[1])


def test_the_best_comes_back_after_early_stopping(tmp_path):
    learn = scripted_learner([1.0, 3.0, 2.0, 2.0, 2.0, 9.0], path=tmp_path)
    snapshots = Snapshots()
    snapshots.order = 50  # before the fit is ended
    learn.fit(
        6, cbs=[EarlyStoppingCallback("score", patience=2), SaveModelCallback("score"), snapshots]
    )
    assert len(snapshots.params) == 4
    assert same_params(learn.model, snapshots.params[1])


def test_without_a_finite_value_nothing_is_saved_or_loaded(tmp_path):
    (tmp_path / "models").mkdir()
    learn = scripted_learner([NAN], path=tmp_path)
    learn.save("model")  # an old one, which must not come back
    snapshots = Snapshots()
    keep = SaveModelCallback("score")
    learn.fit(2, cbs=[keep, snapshots])
    assert keep.last_saved_path is None
    assert same_params(learn.model, snapshots.params[-1])


def test_a_best_of_an_earlier_fit_comes_back_if_it_is_to_be_kept(tmp_path):
    learn = scripted_learner([5.0, 1.0], path=tmp_path)
    keep = SaveModelCallback("score", reset_on_fit=False)
    learn.fit(1, cbs=keep)
    best = copied_params(learn.model)
    learn.fit(1, cbs=keep)
    assert same_params(learn.model, best)


def test_every_epoch(tmp_path):
    for every, names in [(True, "012345"), (2, "024"), (4, "04")]:
        learn = tiny_learner(path=tmp_path, model_dir=str(every))
        snapshots = Snapshots()
        learn.fit(6, cbs=[SaveModelCallback(every_epoch=every, fname="m"), snapshots])
        saved = sorted(path.stem for path in (tmp_path / str(every)).iterdir())
        assert saved == [f"m_{name}" for name in names]
        assert same_params(learn.model, snapshots.params[-1])
        learn.load("m_0")
        assert same_params(learn.model, snapshots.params[0])


def test_at_end(tmp_path):
    learn = scripted_learner([3.0, 1.0], path=tmp_path)
    keep = SaveModelCallback("score", at_end=True)
    learn.fit(2, cbs=keep)
    last = copied_params(learn.model)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["model.safetensors"]
    learn.load("model")
    assert same_params(learn.model, last)


def test_modes_that_monitor_nothing_need_no_validation(tmp_path):
    dls = DataLoaders(tiny_dls().train, device="cpu")
    for mode in ({"every_epoch": True}, {"at_end": True}):
        keep = SaveModelCallback(**mode)
        tiny_learner(dls=dls, path=tmp_path).fit(1, cbs=keep)
        assert keep.last_saved_path.is_file()
    with pytest.raises(UsageError, match="give one of them"):
        SaveModelCallback(every_epoch=True, at_end=True)


# Reducing the rate


def halves(model):
    return [list(model[0].parameters()), list(model[2].parameters())]


def test_the_rates_of_all_groups_fall_on_a_plateau(capsys):
    learn = scripted_learner([3.0, 2.0, 1.0, 4.0, 4.0, 4.0, 4.0], splitter=halves)
    snapshots = Snapshots()
    slow_down = ReduceLROnPlateau("score", patience=2, factor=4, min_lr=0.01)
    learn.fit(7, lr=slice(0.02, 0.4), cbs=[slow_down, snapshots])
    expected = [[0.02, 0.4]] * 2 + [[0.01, 0.1]] * 3 + [[0.01, 0.025]] * 2
    assert snapshots.lr_after == [pytest.approx(lrs) for lrs in expected]
    # What was set is what the batches of the next epoch trained with
    assert learn.recorder.lrs[3 * 8] == pytest.approx(0.1)
    assert capsys.readouterr().out.count("No better score: lr is") == 2


def test_min_lr_never_raises_a_rate(capsys):
    learn = scripted_learner([1.0], lr=0.001)
    learn.fit(3, cbs=ReduceLROnPlateau("score", min_lr=0.01))
    assert set(learn.recorder.lrs) == {0.001}
    assert "lr is" not in capsys.readouterr().out


def test_a_factor_that_would_raise_the_rate_is_refused():
    for factor in (0.1, 1.0, NAN):
        with pytest.raises(UsageError, match="give one above 1"):
            ReduceLROnPlateau(factor=factor)


def test_a_schedule_beside_it_is_refused():
    learn = tiny_learner(cbs=ReduceLROnPlateau())
    with pytest.raises(CallbackError, match=r"both set lr.*train with learn\.fit"):
        learn.fit_one_cycle(1, 0.1)
    learn.fit(1)


def test_they_run_after_the_recorder_and_in_this_order():
    learn = tiny_learner(
        cbs=[EarlyStoppingCallback(), ReduceLROnPlateau(), SaveModelCallback(), TrackerCallback()]
    )
    names = [cb.name for cb in learn.ordered_cbs("after_epoch")]
    assert names == ["recorder", "tracker", "save_model", "reduce_lr_on_plateau", "early_stopping"]
    assert isinstance(learn.progress, ProgressCallback)
