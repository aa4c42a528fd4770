"""Epochs cut short: how many batches run, and that all else counts by those."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import tiny_dls, tiny_learner
from treadle.callbacks import ShortEpochCallback
from treadle.callbacks.accumulation import GradientAccumulation
from treadle.data import DataLoaders
from treadle.errors import UsageError
from treadle.loop import Callback


class Count(Callback):
    def before_fit(self):
        self.train = self.valid = 0

    def after_pred(self):
        if self.training:
            self.train += 1
        else:
            self.valid += 1


@given(pct=st.floats(1e-6, 1))
@settings(max_examples=25, deadline=None)
def test_the_share_of_the_batches_is_run_at_least_one(pct):
    count = Count()
    learn = tiny_learner(cbs=[ShortEpochCallback(pct), count])
    with learn.no_logging():
        learn.fit(2)
    assert count.train == 2 * max(1, math.ceil(pct * 8))
    assert count.valid == 2 * max(1, math.ceil(pct * 3))
    assert len(learn.recorder.losses) == count.train  # the last batch is recorded too
    assert learn.updates == learn.planned_updates == count.train


@pytest.mark.parametrize("short_valid", [False, True])
def test_validation_may_be_whole(short_valid):
    count = Count()
    learn = tiny_learner(cbs=[ShortEpochCallback(0.3, short_valid), count])
    learn.fit(1)
    assert (count.train, count.valid) == (3, 1 if short_valid else 3)
    assert None not in learn.recorder.values[0]


def test_a_schedule_runs_its_whole_course():
    learn = tiny_learner()
    learn.fit_one_cycle(4, 0.1, cbs=ShortEpochCallback(0.5))
    lrs = learn.recorder.lrs
    assert len(lrs) == 16
    whole = tiny_learner()
    whole.fit_one_cycle(2, 0.1)
    assert lrs == whole.recorder.lrs


def test_outside_a_fit_nothing_is_cut_short():
    preds = []
    learn = tiny_learner(cbs=ShortEpochCallback(0.01))
    ask = Callback(after_epoch=lambda cb: preds.append(len(cb.learn.get_preds()[0])))
    learn.fit(1, cbs=ask)
    assert preds == [40]
    assert len(learn.get_preds()[0]) == 40
    plain = tiny_learner(lr=0.0)
    plain.model.load_state_dict(learn.model.state_dict())
    assert learn.validate() == plain.validate()


@pytest.mark.parametrize("pct", [0.0, -0.5, 1.01, math.nan])
def test_a_share_that_is_none_is_refused(pct):
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        ShortEpochCallback(pct)


def test_others_know_how_many_batches_there_are():
    seen = []
    look = Callback(after_batch=lambda cb: seen.append((cb.iter, cb.n_iter)))
    learn = tiny_learner(cbs=ShortEpochCallback(0.3))
    learn.fit(1, cbs=look)
    assert seen == [(0, 3), (1, 3), (2, 3), (0, 1)]


def test_what_is_known_of_the_loader_still_is():
    class Loader:
        """Batches of tensors, and a name."""

        name = "batches"

        def __len__(self):
            return 8

        def __iter__(self):
            drawn.append("start")
            for batch in tiny_dls().train:
                drawn.append("batch")
                yield batch

    drawn, names = [], []
    learn = tiny_learner(dls=DataLoaders(Loader(), device="cpu"), cbs=ShortEpochCallback(0.3))
    learn.fit(2, cbs=Callback(after_batch=lambda cb: names.append((cb.dl.name, len(cb.dl)))))
    assert names == [("batches", 3)] * 6
    assert drawn == ["start", *["batch"] * 3] * 2  # none that is not trained on


def test_windows_are_counted_and_the_last_is_stepped_with():
    """Six of eight batches of 16, windows of 64: four batches, then two."""
    count = Count()
    learn = tiny_learner(cbs=[ShortEpochCallback(0.75), GradientAccumulation(64), count])
    learn.fit_one_cycle(3, 0.1)
    assert count.train == 18
    assert learn.updates == learn.planned_updates == 6


def test_a_sweep_is_whole():
    learn = tiny_learner(cbs=ShortEpochCallback(0.01))
    batches = []
    learn.add_cb(Callback(after_loss=lambda cb: batches.append(cb.iter)))
    learn.lr_find(num_it=20, show_plot=False, stop_div=False)
    assert len(batches) == 20
