"""Precision: what is computed in which dtype, true gradients for all, steps that are skipped."""

from __future__ import annotations

import math
from collections import namedtuple
from functools import partial

import pytest
import torch
from torch import nn

from helpers import copied_params, same_params, tiny_learner
from treadle.all import (
    Adam,
    Callback,
    CancelBackwardException,
    GradientAccumulation,
    GradientClip,
    UsageError,
)
from treadle.loop.late import LateNumbers
from treadle.loop.precision import Precision

FUSED = partial(torch.optim.AdamW, fused=True)  # takes scale and verdict on the device


class Look(nn.Linear):
    """Notes the dtype that it computes in."""

    def forward(self, x):
        out = super().forward(x)
        self.seen = out.dtype
        return out


def scaled(learn, init_scale=1024.0):
    """With a scaler as fp16 has on a GPU; powers of two scale without rounding."""
    learn.precision.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    return learn


class Overflow(Callback):
    """Makes the gradients of the batches `at` infinite."""

    order = -50

    def __init__(self, *at):
        self.at, self.seen = at, -1

    def after_backward(self):
        self.seen += 1
        if self.seen in self.at:
            next(self.model.parameters()).grad.view(-1)[0] = math.inf


def test_half_precision_predictions_become_float32_wherever_they_are():
    pair = namedtuple("Pair", "first second")

    class Nested(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return {"a": [out, "text"], "b": pair(out, out.double())}, out

    named, out = Precision("bf16").forward(Nested(2, 3), torch.ones(4, 2))
    assert out.dtype == named["a"][0].dtype == named["b"].first.dtype == torch.float32
    assert named["a"][1] == "text"
    assert named["b"].second.dtype == torch.float64


@pytest.mark.parametrize("made", ["argument", "method", "again"])
def test_bf16_computes_in_bf16_and_reports_in_float32(made):
    learn = tiny_learner(precision="bf16" if made == "argument" else "fp32")
    if made != "argument":
        learn.to_bf16()
    if made == "again":
        learn.to_bf16()
    learn.model, preds = Look(8, 4), []
    learn.fit(1, cbs=Callback(after_pred=lambda cb: preds.append(cb.pred.dtype)))
    assert learn.model.seen == torch.bfloat16
    assert set(preds) == {torch.float32}
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())
    learn.validate()
    assert learn.model.seen == torch.bfloat16
    learn.to_fp32().validate()
    assert learn.model.seen == torch.float32


def test_autocast_is_left_again_also_when_the_model_fails():
    class Fails(nn.Linear):
        def forward(self, x):
            super().forward(x)
            raise ZeroDivisionError

    learn = tiny_learner(precision="bf16")
    learn.model = Fails(8, 4)
    with pytest.raises(ZeroDivisionError):
        learn.fit(1)
    assert not torch.is_autocast_enabled("cpu")


def test_fp16_on_the_cpu_says_what_it_does_instead():
    learn = tiny_learner().to_fp16().to_fp16()
    learn.model = Look(8, 4)
    with pytest.warns(UserWarning, match="bf16 instead"):
        learn.fit(1)
    assert learn.model.seen == torch.bfloat16
    with pytest.raises(UsageError, match="did you mean fp16"):
        tiny_learner(precision="f16")


def test_who_looks_before_the_step_sees_true_gradients():
    """Without asking for it: clipping, logging, whoever."""
    runs = []
    for prepare in (lambda learn: learn, scaled):
        seen = []

        def look(cb, seen=seen):
            seen.append([p.grad.clone() for p in cb.model.parameters()])

        learn = prepare(tiny_learner(cbs=[Callback(before_step=look), GradientClip(0.2)]))
        learn.fit(1)
        runs.append((seen, copied_params(learn.model)))
    (plain, params), (through_scaler, scaled_params) = runs
    assert all(torch.equal(a, b) for a, b in zip(params, scaled_params, strict=True))
    for grads, others in zip(plain, through_scaler, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(grads, others, strict=True))


@pytest.mark.parametrize(
    "opt_func", [Adam, torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9)]
)
@pytest.mark.parametrize("clip", [(), (GradientClip(1.0),)])
def test_an_overflow_is_no_update_and_does_not_move_the_schedule(opt_func, clip):
    learn = scaled(tiny_learner(opt_func=opt_func, cbs=[Overflow(2, 3), *clip]))
    params, progress = [], []

    def look(cb):
        params.append(copied_params(cb.model))
        progress.append(cb.updates)

    learn.fit_one_cycle(1, 0.1, cbs=Callback(after_step=look))
    assert progress == [1, 2, 2, 2, 3, 4, 5, 6]
    assert all(map(torch.equal, params[1], params[3]))
    assert not all(map(torch.equal, params[3], params[4]))
    lrs = learn.recorder.lrs
    assert len(lrs) == 8  # a loss was computed each time
    assert lrs[1] != lrs[2] == lrs[3] == lrs[4] != lrs[5]
    assert learn.precision.scaler.get_scale() == 256.0


def test_with_a_scaler_no_step_reads_either(monkeypatch):
    """Of what the scaler computes; our own optimizer reads that on a CPU, where it is at hand."""

    def fail(*args):
        raise AssertionError("this read waits for the device")

    learn = scaled(tiny_learner(opt_func=FUSED, cbs=GradientClip(1.0)))
    learn.fit(1)
    learn.precision._overflows.arrived = list  # nothing has arrived yet
    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "__bool__", "__float__"):
            patched.setattr(torch.Tensor, name, fail)
        with learn.removed_cbs(list(learn.cbs)):
            learn.fit(1)


def test_skipped_windows_do_not_count_either():
    learn = scaled(tiny_learner(cbs=[Overflow(1), GradientAccumulation(32)]))
    learn.fit(1)
    assert (learn.updates, learn.planned_updates) == (3, 4)
    assert len(learn.recorder.losses) == 4


def test_steps_that_the_optimizer_itself_leaves_out_do_not_count():
    """Its guard against gradients that are no numbers works in full precision as well."""
    learn = tiny_learner(opt_func=lambda p, lr: Adam(p, lr=lr).guard(skip_nonfinite=True))
    learn.fit(2, cbs=Overflow(0, 9))
    assert learn.updates == 14
    assert all(p.isfinite().all() for p in learn.model.parameters())


def test_a_step_without_a_backward_pass_of_ours_is_not_unscaled():
    """Who cancels the backward pass and makes one of his own makes true gradients."""

    class Own(Callback):
        def before_backward(self):
            self.loss_grad.backward()
            raise CancelBackwardException

    plain, own = tiny_learner(), scaled(tiny_learner(cbs=[Own, GradientClip(0.2)]))
    plain.fit(1, cbs=GradientClip(0.2))
    own.fit(1)
    assert same_params(own.model, copied_params(plain.model))


def test_the_state_is_saved():
    learn = scaled(tiny_learner(cbs=Overflow(1)))
    learn.fit(1)
    state = learn.precision.state_dict()
    assert state["scaler"]["scale"] == 512.0
    other = Precision()
    other.scaler = torch.amp.GradScaler("cpu")
    other.load_state_dict(state)
    assert other.state_dict() == state
    late = Precision()  # whose scaler is made when a fit starts
    late.load_state_dict(state)
    assert late.state_dict() == state
    with pytest.raises(UsageError, match=r"the state of fp32 .* computes in bf16"):
        Precision("bf16").load_state_dict(state)


def test_what_is_under_way_is_counted_when_it_arrives():
    class Event:
        there = False

        def query(self):
            return self.there

    numbers, events = LateNumbers(), [Event(), Event()]
    numbers._under_way.extend((torch.tensor(float(i)), e) for i, e in enumerate(events))
    assert numbers.arrived() == []
    events[0].there = True
    assert numbers.arrived() == [0.0]
    assert numbers.arrived() == []
    events[1].there = True
    assert numbers.arrived() == [1.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("opt_func", [Adam, FUSED])
def test_fp16_on_the_gpu_waits_for_nothing(opt_func):
    learn = tiny_learner(opt_func=opt_func).to_fp16()
    learn.dls.to("cuda")
    batches = [[t.cuda() for t in batch] for batch in learn.dls.train]
    learn.dls.loaders[0] = batches
    learn.fit(1)
    strict = Callback(
        before_batch=lambda cb: torch.cuda.set_sync_debug_mode("error"),
        after_batch=lambda cb: torch.cuda.set_sync_debug_mode("default"),
    )
    strict.order = -100
    try:
        with learn.no_bar():
            learn.fit_one_cycle(2, 0.1, cbs=[strict, GradientClip(1.0)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert learn.precision.scaler.is_enabled()
    assert all(math.isfinite(loss) for loss in learn.recorder.raw_losses)
