"""`learn.explain` says who listens, why in that order, and what each changes."""

from __future__ import annotations

import pytest

from helpers import tiny_learner
from treadle.all import (
    Callback,
    CallbackError,
    CancelBatchException,
    CancelStepException,
    CSVLogger,
    CutMix,
    GradientAccumulation,
    GradientClip,
    Learner,
    ParamScheduler,
    Recorder,
    RNNCallback,
    RNNRegularizer,
    SchedCos,
    event,
)
from treadle.loop.explain import explain_event


class Base(Callback):
    """The base. It has more to say."""

    def after_pred(self):
        self.learn.pred = self.pred * 2


class Many(Base):
    """Changes many things; this is how."""

    order = 3
    run_after = "First"
    run_valid = False

    def after_pred(self):
        super().after_pred()
        learn = self.learn
        learn.yb, (learn.x, _) = (1,), (2, 3)
        self._help(0)
        setattr(self.learn, "dl", [])  # noqa: B010

    def _help(self, n):
        self.learn.loss_grad += 1
        self.xb[0] = n
        if n:
            raise CancelBatchException
        self._help(n)  # a circle is read once

    def before_step(self):
        for p in self.model.parameters():
            p.grad.mul_(0.5)
        self.opt.set_hyper("lr", 0.1)
        self.model.weight.add_(1)  # not the loop's own
        self.loss.mul_(2)
        raise CancelStepException()

    def after_fit(self):
        self.own = 1


class First(Callback):
    def after_pred(self):
        pass


def explained(capsys, name, *cbs):
    learn = tiny_learner(cbs=list(cbs))
    learn.explain(name)
    return capsys.readouterr().out.splitlines()


def test_who_listens_why_in_that_order_and_what_each_changes(capsys):
    assert explained(capsys, "after_pred", Many(), First()) == [
        "after_pred is heard by, in this order:",
        "1. First: says nothing of itself.",
        "   order 0; Many asks to run after First",
        "   changes nothing of the learner's that its source shows",
        "2. Many: Changes many things; this is how.",
        "   order 3; Many asks to run after First",
        "   changes dl, loss_grad, pred, x, xb, yb; may raise CancelBatchException",
        "   not while run_valid is False",
    ]
    assert explained(capsys, "before_step", Many(), First())[3] == (
        "   changes gradients, hyper-parameters, loss; may raise CancelStepException"
    )
    assert explained(capsys, "after_fit", Many(), First())[-1] == (
        "   changes nothing of the learner's that its source shows"
    )


def test_the_librarys_own(capsys):
    assert "   changes loss" in explained(capsys, "after_loss", CutMix())
    assert "   changes loss_grad" in explained(
        capsys, "after_loss", RNNCallback(), RNNRegularizer()
    )
    assert "   changes gradients" in explained(capsys, "before_step", GradientClip())
    lines = explained(capsys, "before_fit", GradientAccumulation(8))
    assert lines[1].startswith("1. GradientAccumulation: Takes a step only once `n_acc` samples")
    assert lines[3] == "   changes planned_updates, window"
    lines = explained(capsys, "after_epoch", CSVLogger())
    assert "   order 60; CSVLogger asks to run after Recorder" in lines
    assert "   changes hyper-parameters" in explained(
        capsys, "before_batch", Callback(before_batch=lambda cb: cb.opt.set_hypers(lr=1))
    )


def test_every_event_of_every_callback_can_be_explained():
    for name in event:
        scheduler = ParamScheduler({"lr": SchedCos(1, 0)})
        text = explain_event(
            name, [*tiny_learner().cbs, Many(), First(), GradientClip(), scheduler]
        )
        assert name in text


def test_functions_and_sources_that_cannot_be_read(capsys):
    def raise_loss(cb):
        cb.learn.loss = cb.loss * 2

    lines = explained(capsys, "after_loss", Callback(after_loss=raise_loss))
    assert lines[1:] == ["1. Callback: made of a function.", "   order 0", "   changes loss"]
    space = {"Callback": Callback}
    exec("class Typed(Callback):\n    def after_loss(self): self.learn.loss = 1", space)
    lines = explained(capsys, "after_loss", space["Typed"]())
    assert lines[-1] == "   what it changes is not known: its source cannot be read"


def test_an_event_that_nobody_hears_or_that_is_none(capsys):
    assert explained(capsys, "after_pred") == ["Nobody hears after_pred."]
    with pytest.raises(CallbackError, match=r"no event 'after_los'; did you mean after_loss\?"):
        tiny_learner().explain("after_los")


def test_the_loop_is_shown_with_its_listeners(capsys):
    tiny_learner(cbs=GradientClip).show_training_loop()
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines()}
    assert lines["before_train"] == ["[TrainEvalCallback]"]
    assert lines["before_step"] == ["[GradientClip]"]
    assert lines["after_epoch"] == ["[Recorder]"]
    assert "after_pred" not in shown  # nobody hears it
    assert isinstance(tiny_learner().recorder, Recorder)
    assert Learner.show_training_loop.__doc__
