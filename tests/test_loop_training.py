"""The loop: what cancels leave, what callbacks change, what an interrupt leaves usable."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import traceback
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import copied_params, tiny_learner
from treadle.all import (
    SGD,
    Adam,
    Callback,
    CallbackError,
    CancelBatchException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    DataLoader,
    DataLoaders,
    ParamScheduler,
    Recorder,
    SchedLin,
    TerminateOnNaNCallback,
    event,
)
from treadle.errors import UsageError


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


def test_a_loss_changed_in_place_harms_neither_the_other_nor_the_loss_function():
    """A square root keeps its result for the backward pass; changing that in place would be an
    error of autograd."""

    def rmse(pred, target):
        return (pred - nn.functional.one_hot(target, 4)).square().mean().sqrt()

    def gradients(**functions):
        learn, found = tiny_learner(loss_func=rmse), []

        def keep(cb):
            found.append(([p.grad.clone() for p in cb.model.parameters()], cb.loss.item()))

        learn.fit(1, cbs=[Callback(**functions), Callback(after_backward=keep)])
        return found[0]

    def triple(cb):
        cb.learn.loss *= 3

    def triple_grad(cb):
        cb.learn.loss_grad *= 3

    (plain, loss), (tripled, loss3) = gradients(), gradients(after_loss=triple)
    (by_grad, same_loss), _ = gradients(after_loss=triple_grad), None
    assert loss3 == pytest.approx(3 * loss)
    assert same_loss == loss
    for g, g3, also in zip(plain, tripled, by_grad, strict=True):
        torch.testing.assert_close(g3, 3 * g)
        assert torch.equal(g3, also)


def test_callbacks_change_gradients():
    learn = tiny_learner()
    before = flat(learn.model).clone()

    class Flat(Callback):
        def before_step(self):
            for p in self.model.parameters():
                p.grad.fill_(1.0)

    learn.fit(1, 0.5, wd=0.0, cbs=Flat)
    torch.testing.assert_close(flat(learn.model), before - 0.5 * len(learn.dls.train))


def test_callbacks_change_the_loader():
    learn, seen = tiny_learner(), []
    half = list(learn.dls.train)[:2]
    learn.fit(
        2,
        cbs=[
            Callback(before_train=lambda cb: setattr(cb.learn, "dl", half)),
            Callback(before_batch=lambda cb: seen.append((cb.iter, cb.n_iter, cb.training))),
        ],
    )
    assert learn.updates == 4
    assert [it for it in seen if it[2]] == [(0, 2, True), (1, 2, True)] * 2


def test_callbacks_change_the_model():
    learn, other = tiny_learner(), nn.Linear(8, 4)
    kept = copied_params(other)
    seen = []

    class Lend(Callback):
        """Validates another model, as one that averages weights does."""

        def before_validate(self):
            self.own, self.learn.model = self.model, other

        def after_pred(self):
            seen.append((self.training, self.pred.detach() - other(self.x).detach()))

        def after_validate(self):
            self.learn.model = self.own

    model = learn.model
    learn.fit(1, cbs=Lend)
    assert learn.model is model
    assert all(map(torch.equal, copied_params(other), kept))
    assert all(training or not difference.any() for training, difference in seen)


def test_callbacks_change_the_optimizer():
    """In the middle of a fit: from then on the other one steps, and is scheduled and recorded."""
    learn = tiny_learner(opt_func=partial(SGD, mom=0.9))
    others = []

    class Swap(Callback):
        def before_epoch(self):
            if self.epoch == 1:
                self.learn.opt = Adam(self.model.parameters(), lr=7.0)
                others.append(self.learn.opt)

    learn.fit(2, cbs=[Swap, ParamScheduler({"lr": SchedLin(1.0, 0.0)})])
    assert learn.opt is others[0]
    assert all(state["step"] == 8 for state in learn.opt.state.values())
    assert learn.recorder.lrs == pytest.approx([1 - i / 16 for i in range(16)])
    hps = learn.recorder.hps
    assert {len(column) for column in hps.values()} == {16}
    assert torch.tensor(hps["sqr_mom"]).isnan().tolist() == [True] * 8 + [False] * 8
    assert "mom" in hps


def test_callbacks_change_the_schedule():
    """It holds at once; and a group that is new in the middle of a fit is scheduled too."""
    learn = tiny_learner()

    class Change(Callback):
        order = 1

        def before_epoch(self):
            if self.epoch == 1:
                self.param_scheduler_lr.scheds["lr"] = SchedLin(0.0, 1.0)

        def before_batch(self):
            if self.epoch == 1 and self.iter == 4 and self.training:
                extra = {"params": [nn.Parameter(torch.ones(1))], "param_names": ["extra"]}
                self.opt.add_param_group(extra)

    learn.fit(2, cbs=[ParamScheduler({"lr": SchedLin(1.0, 0.0)}), Change])
    first, second = learn.recorder.hypers
    down, up = [1 - i / 16 for i in range(8)], [i / 16 for i in range(8, 16)]
    assert first["lr"] == pytest.approx(down + up)
    assert second["lr"][12:] == first["lr"][12:]
    assert all(map(math.isnan, second["lr"][:12]))


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


def test_parameters_that_came_to_the_model_are_trained():
    """A head put on after a fit would otherwise never be stepped, without a word."""
    learn = tiny_learner()
    learn.fit(1)
    learn.model[2] = nn.Linear(16, 4)
    before = learn.model[2].weight.detach().clone()
    with pytest.warns(UserWarning, match=r"2\.weight, 2\.bias\); the optimizer is made anew"):
        learn.fit_one_cycle(1, 0.1)
    assert not torch.equal(learn.model[2].weight, before)
    own = SGD(learn.model[2].parameters(), lr=0.1)  # one that the user made knows best
    learn.opt = own
    learn.fit(1)
    assert learn.opt is own


def test_the_state_of_the_optimizer_is_kept_under_the_parameters_names():
    for opt_func in (Adam, torch.optim.AdamW, lambda params, lr: torch.optim.SGD(params, lr=lr)):
        learn = tiny_learner(opt_func=opt_func)
        learn.fit(1)
        named = [group["param_names"] for group in learn.opt.state_dict()["param_groups"]]
        assert sorted(chain(*named)) == ["0.bias", "0.weight", "2.bias", "2.weight"]
        learn.opt.load_state_dict(learn.opt.state_dict())


def test_one_loader_alone_trains_without_validation():
    learn = tiny_learner()
    learn.dls = DataLoaders(list(learn.dls.train), device="cpu")
    learn.fit(1)
    assert learn.recorder.values[0][1] is None


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_forward_is_few_frames_below_fit(verb):
    """In training and in validation, torch's own frames counted."""
    depths = {True: set(), False: set()}

    class Deep(nn.Linear):
        def forward(self, x):
            names = [frame.name for frame in traceback.extract_stack()]
            depths[self.training].add(len(names) - 1 - names.index(verb))
            return super().forward(x)

    learn = tiny_learner()
    learn.model = Deep(8, 4)
    learn.fit(1) if verb == "fit" else learn.validate()
    assert max(depths[False]) <= 10
    assert verb == "validate" or max(depths[True]) <= 10


# Interrupts


def interrupted_learner(**kwargs):
    """Interrupted in the third batch of the second epoch."""

    class Interrupt(Callback):
        def after_loss(self):
            if self.training and (self.epoch, self.iter) == (1, 2):
                raise KeyboardInterrupt

    learn = tiny_learner(**kwargs)
    with pytest.raises(KeyboardInterrupt) as caught:
        learn.fit_one_cycle(3, 0.1, cbs=Interrupt)
    return learn, caught  # whose traceback holds on to all, as a notebook's does


def test_after_an_interrupt_table_and_history_stand_and_the_learner_is_usable(capsys):
    learn, _ = interrupted_learner()
    assert len(capsys.readouterr().out.splitlines()) == 2
    recorder = learn.recorder
    assert [row["epoch"] for row in recorder.history] == [0]
    assert len(recorder.losses) == len(recorder.lrs) == len(recorder.steps) == 8 + 2
    recorder.plot_loss()
    assert [type(cb).__name__ for cb in learn.cbs] == [
        *("TrainEvalCallback", "Recorder", "ProgressCallback")
    ]
    assert learn.validate()[0] > 0
    learn.lr_find(num_it=20, show_plot=False)
    learn.fit(1)
    assert len(recorder.history) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_after_an_interrupt_the_loader_starts_a_new_epoch():
    x, y = (torch.cat(parts) for parts in zip(*tiny_learner().dls.train, strict=True))
    train = DataLoader(torch.utils.data.TensorDataset(x, y), bs=16, device="cpu", num_workers=1)
    learn, _ = interrupted_learner(dls=DataLoaders(train))
    assert (train.state_dict()["epoch"], train.state_dict()["batch"]) == (2, 0)
    learn.lr_find(num_it=20, show_plot=False)
    learn.fit(1)
    assert learn.updates == 8


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from helpers import tiny_learner
from treadle.all import *
learn = tiny_learner()
left = []

class Slow(Callback):
    order = -3
    def before_fit(self):
        self.scope.callback(left.append, "scope")
    def before_batch(self):
        if self.epoch == 1 and self.iter == 2 and self.training:
            print("now", flush=True)
            while True:
                pass  # until the signal comes

try:
    learn.fit(3, cbs=Slow)
except KeyboardInterrupt:
    print("interrupted", left, len(learn.recorder.rows), len(learn.recorder.losses), len(learn.cbs))
learn.fit(1)
print("trained", len(learn.recorder.rows))
"""


def test_ctrl_c_in_a_terminal():
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout.readline, "")
        assert any(line == "now\n" for line in lines)
        process.send_signal(signal.SIGINT)
        rest = list(lines)
    assert process.returncode == 0
    assert rest[0] == "interrupted ['scope'] 1 10 3\n"
    assert rest[-1] == "trained 1\n"


def flat(model):
    return torch.cat([p.reshape(-1) for p in model.parameters()])


def raising(error):
    def raise_it(cb):
        raise error

    return raise_it


def test_a_batch_without_a_target_is_an_error_in_training():
    learn = tiny_learner()
    x, _ = learn.dls.one_batch()
    learn.dls = DataLoaders([(x,)], [(x,)])
    with pytest.raises(UsageError, match="The batch has no target"):
        learn.fit(1)
