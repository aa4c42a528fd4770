"""Every event and every cancel, in training and validation, against a model of the loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers import tiny_learner
from treadle.all import (
    Callback,
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidException,
    DataLoaders,
    event,
)

CANCELS = {
    "step": CancelStepException,
    "backward": CancelBackwardException,
    "batch": CancelBatchException,
    "train": CancelTrainException,
    "validate": CancelValidException,
    "epoch": CancelEpochException,
    "fit": CancelFitException,
}


class Journal(Callback):
    """Writes down every event, and raises what it is told to at the n-th firing of one."""

    def __init__(self, raise_at: dict[tuple[str, int], type[Exception]]) -> None:
        self.raise_at = raise_at
        self.lines: list[str] = []

    def fire(self, name):
        self.lines.append(name)
        if error := self.raise_at.get((name, self.lines.count(name))):
            raise error


for _name in event:
    setattr(Journal, _name, lambda self, name=str(_name): self.fire(name))
Journal._heard = frozenset(event.__members__)

N_EPOCH, N_TRAIN, N_VALID = 2, 2, 2


def loop_model(fire):
    """What the loop promises, in ten lines."""

    def phase(name, *parts):
        try:
            fire(f"before_{name}")
            for part in parts:
                part()
        except CANCELS[name]:
            fire(f"after_cancel_{name}")
        fire(f"after_{name}")

    def batch(*more):
        phase("batch", lambda: fire("after_pred"), lambda: fire("after_loss"), *more)

    backward, step = lambda: phase("backward"), lambda: phase("step")
    train = lambda: phase("train", *[lambda: batch(backward, step)] * N_TRAIN)  # noqa: E731
    validate = lambda: phase("validate", *[batch] * N_VALID)  # noqa: E731
    phase("fit", *[lambda: phase("epoch", train, validate)] * N_EPOCH)


def heard(journal, run):
    """What was fired, and what escaped."""
    escaped = None
    try:
        run()
    except tuple(CANCELS.values()) as error:
        escaped = type(error)
    return journal.lines, escaped


def small_learner():
    x = torch.arange(32.0).view(4, 4, 2) / 32
    batches = [(xb, torch.tensor([0, 1, 0, 1])) for xb in x]
    dls = DataLoaders(batches[:N_TRAIN], batches[N_TRAIN:], device="cpu")
    model = torch.nn.Linear(2, 2)
    torch.nn.init.eye_(model.weight)
    torch.nn.init.zeros_(model.bias)
    return tiny_learner(dls=dls, model=model)


raises = st.dictionaries(
    st.tuples(st.sampled_from(list(event)), st.integers(1, 6)),
    st.sampled_from(list(CANCELS.values())),
    max_size=6,
)


@given(raises)
@settings(max_examples=300, deadline=None)
@example({})
@example({("before_batch", 3): CancelBatchException})  # the first of a validation
@example({("before_step", 1): CancelBackwardException, ("after_step", 2): CancelTrainException})
def test_cancels_raised_anywhere_follow_the_model(raise_at):
    journal, model = Journal(raise_at), Journal(raise_at)
    learn = small_learner()

    def run():
        learn.add_cb(journal)
        with learn.no_logging():
            learn.fit(N_EPOCH)

    def run_model():
        model.fire("after_create")
        loop_model(model.fire)

    assert heard(journal, run) == heard(model, run_model)


@pytest.mark.parametrize("name", list(event))
@pytest.mark.parametrize("error", CANCELS.values(), ids=CANCELS)
def test_each_cancel_in_each_event(name, error):
    """All 24 times 7, at the first firing; then the learner trains on as if nothing had been."""
    raise_at = {(name, 1): error}
    journal, model = Journal(raise_at), Journal(raise_at)
    learn = small_learner()
    callbacks = list(learn.cbs)
    with learn.no_logging():
        lines = heard(journal, lambda: (learn.add_cb(journal), learn.fit(N_EPOCH)))
        model_lines = heard(model, lambda: (model.fire("after_create"), loop_model(model.fire)))
        assert lines == model_lines
        learn.remove_cb(journal)
        learn.fit(1)
    assert learn.cbs == callbacks
    assert len(learn.recorder.values) == 1
    assert len(learn.recorder.losses) == N_TRAIN


def test_validation_alone_has_its_events_and_cancels():
    journal = Journal({("after_loss", 1): CancelBatchException})
    learn = small_learner()
    learn.validate(cbs=journal)
    one = ["before_batch", "after_pred", "after_loss"]
    assert journal.lines == [
        *("after_create", "before_validate"),
        *(*one, "after_cancel_batch", "after_batch", *one, "after_batch"),
        "after_validate",
    ]


def test_a_cancelled_batch_leaves_nothing_behind():
    """Wherever it is cancelled: no prediction, no loss, no gradient, no record."""
    for name in ("before_batch", "after_pred", "after_loss", "before_backward", "after_backward"):
        seen = []
        learn = small_learner()

        def look(cb, seen=seen):
            gradient = any(p.grad is not None for p in cb.model.parameters())
            seen.append((cb.training, cb.pred is None, cb.loss is None, gradient))

        cancel = Callback(**{name: lambda cb: cancel_first(cb)})
        with learn.no_bar():
            learn.fit(1, cbs=[cancel, Callback(after_batch=look)])
        assert seen[0] == (True, True, True, False)
        assert seen[1] == (True, False, False, False)
        assert len(learn.recorder.losses) == learn.updates == N_TRAIN - 1


def cancel_first(cb):
    if cb.training and cb.iter == 0:
        raise CancelBatchException


@pytest.mark.parametrize("error", [CancelBatchException, CancelTrainException])
@pytest.mark.parametrize("name", ["after_backward", "before_step", "after_step"])
def test_no_gradient_leaks_into_the_next_batch(name, error):
    """What follows a cancelled first batch has the gradients that it has without one."""

    def gradients(**functions):
        """By epoch and batch; at a rate of 0 they do not depend on what was before."""
        found = {}

        def keep(cb):
            found[cb.epoch, cb.iter] = cb.model.weight.grad.clone()

        learn = small_learner()
        with learn.no_logging():
            learn.fit(2, 0.0, cbs=[Callback(after_backward=keep), Callback(**functions)])
        return found

    def cancel(cb):
        if cb.epoch == 0 and cb.iter == 0:
            raise error

    plain, cancelled = gradients(), gradients(**{name: cancel})
    assert len(cancelled) == (4 if error is CancelBatchException else 3)
    assert all(torch.equal(grad, plain[when]) for when, grad in cancelled.items())
