"""The recorder: every loss and every hyper-parameter of every group, as lists, rows and CSV."""

from __future__ import annotations

import csv
import math
from functools import partial

import pytest
import torch

from helpers import tiny_learner
from treadle.all import (
    SGD,
    Adam,
    Callback,
    CancelBackwardException,
    CancelBatchException,
    CancelStepException,
    DataError,
    Recorder,
    accuracy,
)


def two_groups(model):
    return [list(model[0].parameters()), list(model[2].parameters())]


def test_every_hyper_parameter_of_every_group_is_kept():
    learn = tiny_learner(opt_func=partial(Adam, wd=0.1), splitter=two_groups)
    seen = []

    def look(cb):
        seen.append([dict(hypers) for hypers in cb.opt.hypers])

    learn.fit_one_cycle(2, slice(0.01, 0.1), cbs=Callback(before_step=look))
    hypers = learn.recorder.hypers
    assert [{name: [group[name] for group in step] for name in step[0]} for step in seen] == [
        {name: [group[name][i] for group in hypers] for name in hypers[0]} for i in range(16)
    ]
    assert {"lr", "mom", "sqr_mom", "eps", "wd"} <= hypers[0].keys()
    assert learn.recorder.hps is hypers[-1]
    assert learn.recorder.lrs == [step[-1]["lr"] for step in seen]


@pytest.mark.parametrize("opt_func", [SGD, torch.optim.AdamW])
def test_losses_and_metrics_are_those_of_the_fit(opt_func):
    learn, losses = tiny_learner(opt_func=opt_func, metrics=accuracy), []
    learn.fit(2, cbs=Callback(after_loss=lambda cb: losses.append(cb.loss.item())))
    train = losses[:8] + losses[11:19]
    assert learn.recorder.raw_losses == pytest.approx(train)
    assert learn.recorder.history[1] == dict(
        zip(learn.recorder.metric_names, learn.recorder.rows[1], strict=True)
    )
    assert [row["epoch"] for row in learn.recorder.history] == [0, 1]
    assert learn.validate() == pytest.approx(learn.recorder.values[-1][1:])


def test_steps_are_rows(tmp_path):
    learn = tiny_learner(splitter=two_groups, opt_func=partial(SGD, mom=0.9), metrics=accuracy)
    learn.fit_one_cycle(2, slice(0.01, 0.1))
    recorder = learn.recorder
    steps = recorder.steps
    assert [row["epoch"] for row in steps] == [0] * 8 + [1] * 8
    assert [row["loss"] for row in steps] == recorder.raw_losses
    assert [row["smooth_loss"] for row in steps] == recorder.losses
    assert [row["lr_1"] for row in steps] == recorder.lrs
    assert [row["mom_0"] for row in steps] == recorder.hypers[0]["mom"]

    file = recorder.to_csv(tmp_path / "steps.csv", by="step")
    with file.open() as opened:
        read = list(csv.DictReader(opened))
    assert [float(row["lr_0"]) for row in read] == recorder.hypers[0]["lr"]
    assert list(read[0]) == list(steps[0])
    with recorder.to_csv(tmp_path / "epochs.csv").open() as opened:
        read = list(csv.DictReader(opened))
    assert list(read[0]) == recorder.metric_names
    assert [float(row["accuracy"]) for row in read] == [row[2] for row in recorder.values]
    with pytest.raises(DataError, match="does not exist"):
        recorder.to_csv(tmp_path / "no" / "steps.csv")


def test_one_group_goes_without_a_number_and_nothing_is_a_table_too(tmp_path):
    learn = tiny_learner()
    assert learn.recorder.history == learn.recorder.steps == learn.recorder.lrs == []
    assert learn.recorder.to_csv(tmp_path / "none.csv").read_text() == (
        "epoch,train_loss,valid_loss,time\n"
    )
    learn.fit(1)
    assert learn.recorder.steps[0]["lr"] == 0.1
    assert [row["step"] for row in learn.recorder.steps] == list(range(8))


@pytest.mark.parametrize(
    ("error", "where", "recorded"),
    [
        (CancelBatchException, "before_batch", 7),
        (CancelBatchException, "after_loss", 7),
        (CancelBatchException, "before_step", 7),
        (CancelBackwardException, "before_backward", 8),
        (CancelStepException, "before_step", 8),
    ],
)
def test_what_was_cancelled_before_its_step_is_not_recorded(error, where, recorded):
    def cancel(cb):
        if cb.training and cb.iter == 3:
            raise error

    learn = tiny_learner()
    learn.fit(1, cbs=Callback(**{where: cancel}))
    assert len(learn.recorder.raw_losses) == len(learn.recorder.lrs) == recorded
    assert learn.recorder.iters == [recorded]


def test_a_cancelled_validation_batch_does_not_count():
    """Nor does it crash those who collect predictions."""

    class SkipFirst(Callback):
        run_train = False

        def before_batch(self):
            if self.iter == 0:
                raise CancelBatchException

    learn = tiny_learner(metrics=accuracy)
    whole = [torch.cat(parts) for parts in zip(*list(learn.dls.valid)[1:], strict=True)]
    expected = learn.validate(dl=[tuple(whole)])
    assert learn.validate(cbs=SkipFirst) == pytest.approx(expected)
    preds, targets = learn.get_preds(cbs=SkipFirst)
    assert torch.equal(targets, whole[1])
    assert len(preds) == len(targets)


def test_an_epoch_without_an_update_has_no_training_loss():
    def cancel(cb):
        if cb.training and cb.epoch == 1:
            raise CancelBatchException

    learn = tiny_learner()
    learn.fit(2, cbs=Callback(before_batch=cancel))
    assert learn.recorder.values[1][0] is None
    assert learn.recorder.history[1]["train_loss"] is None
    assert learn.recorder.iters == [8, 8]


def test_recorders_by_themselves():
    """A learner without the default callbacks takes one like any other."""
    recorder = Recorder([accuracy])
    learn = tiny_learner(default_cbs=False, cbs=recorder)
    learn.fit(1)
    assert learn.recorder is recorder
    assert all(math.isfinite(loss) for loss in recorder.losses)


def test_the_metrics_by_epoch_are_drawn():
    learn = tiny_learner(metrics=accuracy)
    learn.fit(2)
    losses, metric = learn.recorder.plot_metrics().axes
    assert [line.get_label() for line in losses.lines] == ["train", "valid"]
    assert list(metric.lines[0].get_ydata()) == [row[2] for row in learn.recorder.values]
