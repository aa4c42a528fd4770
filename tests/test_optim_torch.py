"""What torch brings for its own optimizers works with these."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from treadle.optim import SGD, Adam, Optimizer, ranger

MAKERS = pytest.mark.parametrize(
    "make",
    [partial(SGD, lr=0.1, mom=0.9), partial(Adam, lr=0.1), partial(ranger, lr=0.1)],
    ids=["sgd", "adam", "ranger"],
)
Make = Callable[[Any], Optimizer]


def a_param() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))


def step(opt: torch.optim.Optimizer) -> None:
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    opt.step()


@MAKERS
def test_it_is_one(make: Make) -> None:
    assert isinstance(make([a_param()]), torch.optim.Optimizer)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": partial(torch.optim.lr_scheduler.StepLR, step_size=3, gamma=0.5),
    "one cycle": partial(
        torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=12, cycle_momentum=False
    ),
    "cosine": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=12),
    "lambda": partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda i: 1 / (1 + i)),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@MAKERS
def test_schedulers_move_the_lr_as_they_move_torchs(make: Make, name: str) -> None:
    mine, theirs = make([a_param()]), torch.optim.SGD([a_param()], lr=0.1)
    my_schedule, their_schedule = SCHEDULERS[name](mine), SCHEDULERS[name](theirs)
    for _ in range(10):
        step(mine)
        step(theirs)
        my_schedule.step()
        their_schedule.step()
        assert mine.hypers[0]["lr"] == theirs.param_groups[0]["lr"]
        # the marks that a scheduler leaves in a group are no hyper-parameters
        assert set(mine.hypers[0]) <= mine.hyper_names


def test_the_scheduled_lr_is_the_one_that_is_used() -> None:
    (mine, theirs) = a_param(), a_param()
    opts = SGD([mine], lr=0.1), torch.optim.SGD([theirs], lr=0.1)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(opt, 1.0, total_steps=9, cycle_momentum=False)
        for opt in opts
    ]
    for _ in range(8):
        for opt, schedule in zip(opts, schedules, strict=True):
            step(opt)
            schedule.step()
    assert torch.equal(mine, theirs)


def test_a_scheduled_optimizer_is_saved_and_loaded() -> None:
    opt = Adam([a_param()], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 1.0, total_steps=9, cycle_momentum=False)
    step(opt)
    schedule.step()
    other = Adam([a_param()], lr=0.3)
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[0]["lr"] == opt.param_groups[0]["lr"]
    assert other.param_groups[0]["max_lr"] == 1.0


class TestGradScaler:
    @MAKERS
    def test_an_inf_leaves_everything_bit_equal(self, make: Make) -> None:
        p = a_param()
        opt = make([p])
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        step(opt)
        before, saved = p.detach().clone(), opt.state_dict()
        scaler.scale((p * torch.tensor([1.0, float("inf"), 1.0])).sum()).backward()
        scaler.step(opt)
        scaler.update()
        assert torch.equal(p, before)
        after = opt.state_dict()
        assert after["param_groups"] == saved["param_groups"]
        for name, stat in saved["state"][0].items():
            assert torch.equal(torch.as_tensor(stat), torch.as_tensor(after["state"][0][name]))
        assert scaler.get_scale() == 2.0

    @MAKERS
    def test_a_finite_gradient_is_unscaled(self, make: Make) -> None:
        p, q = a_param(), a_param()
        scaled, plain = make([p]), make([q])
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale((p**2).sum()).backward()
        scaler.step(scaled)
        scaler.update()
        (q**2).sum().backward()
        plain.step()
        assert torch.equal(p, q)


def test_step_hooks_run_around_the_step() -> None:
    p = a_param()
    opt = SGD([p], lr=1.0)
    seen: list[tuple[str, float]] = []
    opt.register_step_pre_hook(lambda opt, args, kwargs: seen.append(("pre", p[0].item())))
    opt.register_step_post_hook(lambda opt, args, kwargs: seen.append(("post", p[0].item())))
    step(opt)
    assert seen == [("pre", 1.0), ("post", 0.0)]


def test_zero_grad() -> None:
    p = a_param()
    opt = SGD([p], lr=1.0)
    step(opt)
    opt.zero_grad(set_to_none=False)
    assert p.grad is not None
    assert not p.grad.any()
    opt.zero_grad()
    assert p.grad is None


def test_add_param_group() -> None:
    opt = Adam([a_param()], lr=0.1)
    step(opt)
    opt.add_param_group({"params": [a_param()], "lr": 0.5})
    assert opt.hypers[1] == {**opt.hypers[0], "lr": 0.5}
    step(opt)
    assert [opt.state[ps[0]]["step"] for ps in opt.param_lists] == [2, 1]
