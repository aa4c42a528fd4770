"""The loop: which events fire in which order, what a cancel skips, and what callbacks change."""

from __future__ import annotations

from collections import namedtuple
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import tiny_learner
from treadle.all import (
    Adam,
    Callback,
    CallbackError,
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidException,
    DataLoaders,
    Recorder,
    TerminateOnNaNCallback,
    UsageError,
    event,
)
from treadle.loop.precision import Precision

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
        error = self.raise_at.get((name, self.lines.count(name)))
        if error is not None:
            raise error


for _name in event:
    setattr(Journal, _name, lambda self, name=str(_name): self.fire(name))
Journal._heard = frozenset(event.__members__)


def model_of_the_loop(raise_at, n_epoch, n_train, n_valid):
    """What the loop promises, in twenty lines: the events it fires, and what escapes it."""
    lines = []

    def fire(name):
        lines.append(name)
        if error := raise_at.get((name, lines.count(name))):
            raise error

    def phase(name, body):
        try:
            fire(f"before_{name}")
            body()
        except CANCELS[name]:
            fire(f"after_cancel_{name}")
        fire(f"after_{name}")

    def batch(training):
        fire("after_pred")
        fire("after_loss")
        if training:
            phase("backward", lambda: None)
            phase("step", lambda: None)

    def epoch():
        phase("train", lambda: [phase("batch", lambda: batch(True)) for _ in range(n_train)])
        phase("validate", lambda: [phase("batch", lambda: batch(False)) for _ in range(n_valid)])

    escaped = None
    try:
        phase("fit", lambda: [phase("epoch", epoch) for _ in range(n_epoch)])
    except tuple(CANCELS.values()) as error:
        escaped = type(error)
    return lines, escaped


def events_of_a_fit(raise_at, n_epoch=2):
    learn = tiny_learner()
    journal = Journal(raise_at)
    learn.add_cb(journal)
    journal.lines.clear()  # after_create was heard when it was added
    escaped = None
    try:
        with learn.no_logging():
            learn.fit(n_epoch)
    except tuple(CANCELS.values()) as error:
        escaped = type(error)
    return learn, journal.lines, escaped


def test_the_order_of_events():
    learn, lines, _ = events_of_a_fit({}, n_epoch=1)
    n_train, n_valid = len(learn.dls.train), len(learn.dls.valid)
    train_batch = (
        "before_batch after_pred after_loss before_backward after_backward before_step after_step "
        "after_batch"
    ).split()
    valid_batch = "before_batch after_pred after_loss after_batch".split()
    assert lines == [
        *("before_fit", "before_epoch", "before_train"),
        *train_batch * n_train,
        *("after_train", "before_validate"),
        *valid_batch * n_valid,
        *("after_validate", "after_epoch", "after_fit"),
    ]


raisable = [name for name in event if name != "after_create"]


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(raisable), st.integers(1, 3)),
        st.sampled_from(list(CANCELS.values())),
        max_size=3,
    )
)
@settings(max_examples=150, deadline=None)
def test_cancels_raised_anywhere_follow_the_model(raise_at):
    learn, lines, escaped = events_of_a_fit(raise_at)
    expected = model_of_the_loop(raise_at, 2, len(learn.dls.train), len(learn.dls.valid))
    assert (lines, escaped) == expected


def test_a_cancelled_batch_changes_nothing_and_is_not_recorded():
    class SkipOdd(Callback):
        def after_loss(self):
            if self.training and self.iter % 2:
                raise CancelBatchException

    learn = tiny_learner(cbs=SkipOdd)
    weights = []
    learn.add_cb(Callback(before_batch=lambda cb: weights.append(flat(cb.model).clone())))
    learn.fit(1)
    n = len(learn.dls.train)
    moved = [not torch.equal(a, b) for a, b in pairwise(weights[: n + 1])]
    assert moved == [i % 2 == 0 for i in range(n)]
    assert len(learn.recorder.losses) == len(learn.recorder.lrs) == (n + 1) // 2
    assert learn.updates == (n + 1) // 2


def test_a_cancelled_step_leaves_the_weights_and_the_clock():
    learn = tiny_learner()
    before = flat(learn.model).clone()
    learn.fit(1, cbs=Callback(before_step=raising(CancelStepException)))
    assert torch.equal(flat(learn.model), before)
    assert learn.updates == 0
    assert all(p.grad is None for p in learn.model.parameters())


def test_cancel_fit_ends_the_fit_but_keeps_the_learner():
    learn = tiny_learner()
    learn.fit(3, cbs=Callback(after_epoch=raising(CancelFitException)))
    assert len(learn.recorder.values) <= 1
    learn.fit(1)
    assert len(learn.recorder.values) == 1


@pytest.mark.parametrize("name", [name for name in event if "cancel" not in name])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_any_event_leaves_a_usable_learner(name, error):
    learn = tiny_learner()
    callbacks = list(learn.cbs)
    if name == "after_create":
        with pytest.raises(error):
            learn.add_cb(Callback(after_create=raising(error)))
        learn.remove_cb(learn.cbs[-1])
    else:
        with pytest.raises(error) as caught:
            learn.fit(1, cbs=Callback(**{name: raising(error)}))
        if error is RuntimeError:
            assert any(name in note for note in caught.value.__notes__)
    assert learn.cbs == callbacks
    learn.fit(1)
    assert len(learn.recorder.values) == 1
    assert learn.validate()[0] > 0


def test_what_is_entered_in_the_scope_is_left_again_however_the_fit_ends():
    left = []

    class Scoped(Callback):
        def before_fit(self):
            self.scope.callback(left.append, "fit")

    for cbs in ([Scoped()], [Scoped(), Callback(after_loss=raising(ZeroDivisionError))]):
        learn = tiny_learner()
        try:
            learn.fit(1, cbs=cbs)
        except ZeroDivisionError:
            left.append("after the error")
    assert left == ["fit", "fit", "after the error"]


class Change(Callback):
    """Changes one thing of the learner at one event of training."""

    run_valid = False

    def __init__(self, at, **changes):
        self.at, self.changes = at, changes

    def hears(self, name):
        return name == self.at

    def __getattr__(self, name):
        if name in event.__members__:
            return self.change
        return super().__getattr__(name)

    def change(self):
        for name, make in self.changes.items():
            setattr(self.learn, name, make(self.learn))


def test_callbacks_change_input_target_prediction_and_loss():
    """Each change is seen in the gradient: it is the one computed by hand from what was changed."""
    cases = {
        "x": Change("before_batch", x=lambda learn: learn.x * 2),
        "y": Change("before_batch", y=lambda learn: learn.y.flip(0)),
        "pred": Change("after_pred", pred=lambda learn: learn.pred * 3),
        "loss": Change("after_loss", loss=lambda learn: learn.loss * 5),
        "loss_grad": Change("after_loss", loss_grad=lambda learn: learn.loss_grad * 5),
    }
    by_hand = {
        "x": lambda m, x, y, f: f(m(x * 2), y),
        "y": lambda m, x, y, f: f(m(x), y.flip(0)),
        "pred": lambda m, x, y, f: f(m(x) * 3, y),
        "loss": lambda m, x, y, f: f(m(x), y) * 5,
        "loss_grad": lambda m, x, y, f: f(m(x), y) * 5,
    }
    for name, change in cases.items():
        learn = tiny_learner()
        x, y = next(iter(learn.dls.train))[:2]
        loss = by_hand[name](learn.model, x, y, learn.loss_func)
        expected = torch.autograd.grad(loss, list(learn.model.parameters()))
        reported = loss.item() / 5 if name == "loss_grad" else loss.item()
        grads = []

        def keep(cb, grads=grads):
            grads.extend(p.grad.clone() for p in cb.model.parameters())
            raise CancelFitException

        losses = []
        watch = Callback(after_backward=lambda cb, out=losses: out.append(cb.loss.item()))
        learn.fit(1, cbs=[change, watch, Callback(before_step=keep)])
        for grad, by_hand_grad in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, by_hand_grad)
        assert losses == [pytest.approx(reported)]


def test_the_books_spelling_of_a_penalty_reaches_the_gradient():
    """`self.learn.loss += penalty`, in place, as the chapter writes it."""
    plain, penalised = tiny_learner(), tiny_learner()
    start = flat(plain.model).clone()

    class Penalty(Callback):
        def after_loss(self):
            self.learn.loss += 10 * flat(self.model).pow(2).sum()

    one_step = [Callback(after_step=raising(CancelTrainException))]
    plain.fit(1, 0.001, cbs=one_step)
    penalised.fit(1, 0.001, cbs=[Penalty, *one_step])
    # one step of plain SGD: the penalty's own gradient, 20 w, times the rate
    difference = flat(plain.model) - flat(penalised.model)
    torch.testing.assert_close(difference, 0.001 * 20 * start)


def test_callbacks_change_gradients_model_loader_and_optimizer():
    learn = tiny_learner()
    half = list(learn.dls.train)[:2]

    class Swap(Callback):
        def before_train(self):
            self.learn.dl = half

        def before_step(self):
            for p in self.model.parameters():
                p.grad.zero_()

    before = flat(learn.model).clone()
    learn.fit(1, wd=0.0, cbs=Swap)
    assert learn.updates == 2
    assert torch.equal(flat(learn.model), before)
    other = nn.Linear(8, 4)
    learn.fit(1, cbs=Callback(before_train=lambda cb: setattr(cb.learn, "model", other)))
    assert learn.model is other


def test_adding_a_callback_again_does_not_run_it_twice():
    class Count(Callback):
        n = 0

        def after_batch(self):
            type(self).n += 1

    learn = tiny_learner()
    for _ in range(3):  # a notebook cell that is run again
        learn.add_cb(Count())
    learn.to_fp32().to_fp32()
    learn.fit(1)
    assert Count.n == len(learn.dls.train) + len(learn.dls.valid)
    with learn.added_cbs(Count()):
        assert sum(isinstance(cb, Count) for cb in learn.cbs) == 1
    assert isinstance(learn.count, Count)


def test_two_callbacks_of_one_name_at_once_are_refused():
    learn = tiny_learner()
    with pytest.raises(CallbackError, match="two callbacks named recorder"):
        learn.add_cbs([Recorder(), Recorder()])


def test_added_and_removed_callbacks_are_put_back():
    learn = tiny_learner()
    before, recorder = list(learn.cbs), learn.recorder
    with learn.removed_cbs(Recorder), learn.added_cbs([TerminateOnNaNCallback]):
        assert not hasattr(learn, "recorder")
        assert learn.terminate_on_na_n in learn.cbs
    assert learn.cbs == before
    assert learn.recorder is recorder


def test_a_new_opt_func_takes_effect_at_the_next_fit():
    learn = tiny_learner()
    learn.fit(1)
    assert "sqr_mom" not in learn.opt.hyper_names
    learn.opt_func = Adam
    learn.fit(1)
    assert "sqr_mom" in learn.opt.hyper_names


def test_one_loader_alone_trains_without_validation():
    learn = tiny_learner()
    learn.dls = DataLoaders(list(learn.dls.train), device="cpu")
    learn.fit(1)
    assert learn.recorder.values[0][1] is None


def test_forward_is_few_frames_below_fit():
    import traceback

    depths = []

    class Deep(nn.Linear):
        def forward(self, x):
            frames = [frame for frame in traceback.extract_stack() if "torch" not in frame.filename]
            names = [frame.name for frame in frames]
            if self.training:
                depths.append(len(names) - 1 - names.index("fit"))
            return super().forward(x)

    learn = tiny_learner()
    learn.model = Deep(8, 4)
    learn.fit(1)
    assert max(depths) <= 10


def test_half_precision_predictions_become_float32_wherever_they_are():
    half = torch.zeros(2, dtype=torch.bfloat16)
    nested = Precision("bf16").to_float((half, {"a": [half, "text"]}))
    assert nested[0].dtype == nested[1]["a"][0].dtype == torch.float32
    assert nested[1]["a"][1] == "text"
    pair = namedtuple("Pair", "first second")(half, half)
    assert Precision("bf16").to_float(pair).second.dtype == torch.float32


def test_bf16_computes_in_bf16_and_reports_in_float32():
    seen = []

    class Look(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    learn = tiny_learner(precision="bf16")
    learn.model = Look(8, 4)
    learn.fit(1, cbs=Callback(after_pred=lambda cb: seen.append(cb.pred.dtype)))
    assert set(seen) == {torch.bfloat16, torch.float32}
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())


def test_fp16_on_the_cpu_says_what_it_does_instead():
    learn = tiny_learner().to_fp16()
    with pytest.warns(UserWarning, match="bf16 instead"):
        learn.fit(1)
    with pytest.raises(UsageError, match="did you mean fp16"):
        tiny_learner(precision="f16")


def flat(model):
    return torch.cat([p.reshape(-1) for p in model.parameters()])


def raising(error):
    def raise_it(cb):
        raise error

    return raise_it
