"""`Optimizer.explain`: the steppers' own words, the recorded program, and the kernel's source."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from treadle.optim import (
    SGD,
    SOAP,
    Adadelta,
    Adagrad,
    Adam,
    Adan,
    Lamb,
    Larc,
    Lion,
    Muon,
    NAdam,
    Optimizer,
    QHAdam,
    RAdam,
    RMSProp,
    Rule,
    ScheduleFreeAdamW,
    average_grad,
    momentum_step,
    param_rules,
    ranger,
    sgd_step,
)
from treadle.optim.engine import Engine
from treadle.optim.engine.codegen_c import c_source
from treadle.optim.engine.named import named, of_name

Make = Callable[[Any], Optimizer]


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=draw, dtype=dtype)) for s in shapes]


def give_grads(opt: Optimizer, seed: int = 0) -> None:
    draw = torch.Generator().manual_seed(seed)
    for params in opt.param_lists:
        for p in params:
            p.grad = torch.randn(p.shape, generator=draw, dtype=p.dtype)


def program(opt: Optimizer) -> list[str]:
    """The recorded lines, without the steppers' own words before them."""
    lines = opt.explain(program=True).splitlines()
    return lines[lines.index("") + 1 :]


def recorded(stepper: Any, **hypers: Any) -> list[str]:
    """What one stepper does, on a parameter of one entry."""
    lines = program(Optimizer([nn.Parameter(torch.ones(1))], stepper, **hypers))
    assert lines[0] == "  as recorded for 1 parameter in float32:"
    width = len(lines[1]) - len(lines[1].lstrip().partition("  ")[2].lstrip())
    return [line[width:] for line in lines[1:]]


# ---- their own words


def test_the_first_sentences_and_the_groups_that_share_them() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    rule = Rule(nn.Linear, ndim=2, cbs=[average_grad, momentum_step], mom=0.9)
    opt = SGD(param_rules(net, rule, splitter=lambda m: [list(c.parameters()) for c in m]), lr=0.1)
    assert opt.explain().splitlines() == [
        "groups 0, 2",
        "  average_grad   m ← mom·m + d·g, with d = 1 - mom if `dampening`, else 1",
        "  momentum_step  p ← p - lr·m, with m from `average_grad`",
        "groups 1, 3",
        '  weight_decay  p ← (1 - lr·wd)·p, away from the gradient ("decoupled")',
        "  sgd_step      p ← p - lr·g",
    ]


def test_steppers_without_a_docstring_show_their_source() -> None:
    def plain(p: Any, lr: float, **kwargs: Any) -> None:
        if lr > 0:
            p.data.add_(p.grad.data, alpha=-lr)

    class Rule3:
        def __call__(self, p: Any, lr: float) -> None:
            p.data.mul_(1 - lr)

    cbs = [plain, Rule3(), lambda p, lr: p.data.clamp_(-1, 1)]
    opt = Optimizer([nn.Parameter(torch.ones(1))], cbs, lr=0.1, lr_mult=2.0)
    lines = opt.explain().splitlines()
    assert lines[1] == "  plain     if lr > 0: p.data.add_(p.grad.data, alpha=-lr)"
    assert lines[2] == "  Rule3     p.data.mul_(1 - lr)"
    assert "p.data.clamp_(-1, 1)" in lines[3]


# ---- the program


def test_adam() -> None:
    opt = Adam(parameters((2, 3), (3,), dtype=torch.float32), lr=0.1)
    assert program(opt) == [
        "  as recorded for 2 parameters in float32:",
        "  weight_decay                  p ← (1 - lr·wd)·p",
        "  average_grad(dampening=True)  grad_avg ← mom·grad_avg + (1 - mom)·g",
        "  average_sqr_grad              sqr_avg ← sqr_mom·sqr_avg + (1 - sqr_mom)·g²",
        "  step_stat                     step ← step + 1",
        "  adam_step                     p ← p - lr/(1 - mom^step)·grad_avg"
        "/(√(sqr_avg/(1 - sqr_mom^step)) + eps)",
    ]


RECIPES: dict[str, Make] = {
    "sgd": partial(SGD, lr=0.1, mom=0.9, wd=0.1, decouple_wd=False, nesterov=True),
    "rmsprop": partial(RMSProp, lr=0.1, mom=0.9),
    "adam": partial(Adam, lr=0.1),
    "adagrad": partial(Adagrad, lr=0.1),
    "adadelta": partial(Adadelta, wd=0.1),
    "adan": partial(Adan, lr=0.1, wd=0.1),
    "lion": partial(Lion, lr=0.1, wd=0.1),
    "nadam": partial(NAdam, lr=0.1, mom_decay=0.1),
    "radam": partial(RAdam, lr=0.1),
    "qhadam": lambda ps: QHAdam(ps, lr=0.1),
    "larc": partial(Larc, lr=0.1),
    "lamb": partial(Lamb, lr=0.1, wd=0.1),
    "ranger": partial(ranger, lr=0.1, k=4),
    "schedule-free": partial(ScheduleFreeAdamW, lr=0.1, wd=0.1),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_mathematics_is_what_happens(name: str) -> None:
    """Computed as they are printed, the lines lead where a step leads."""
    opt = RECIPES[name](parameters((3, 4)))
    opt._engine = Engine("reference")
    (p,) = opt.param_lists[0]
    for step in range(4):
        give_grads(opt, seed=step)
        lines = program(opt)
        values = {"p": p.detach().clone(), "g": p.grad.clone(), **dict(opt.hypers[0])}
        values |= {k: v.clone() if isinstance(v, Tensor) else v for k, v in opt.state[p].items()}
        opt.step()
        if step:  # in a first step there are no stats, and it is the one after it that is shown
            compute(lines[1:], values)
            for key, x in {"p": p.detach(), "g": p.grad, **opt.state[p]}.items():
                theirs = torch.as_tensor(values[key], dtype=torch.float64)
                mine = torch.as_tensor(x, dtype=torch.float64)
                torch.testing.assert_close(theirs, mine, rtol=1e-9, atol=1e-12, msg=key)


def compute(lines: list[str], values: dict[str, Any]) -> None:
    """Do what `lines` say with `values`."""
    for line in lines:
        found = re.search(r"(\w+) (←|=) (.*)$", line)
        if found is None:
            assert line.endswith("  nothing"), line
        else:
            text = found[3].replace("·", "*").replace("^", "**").replace(" and ", " & ")
            text = text.replace("²", "**2").replace("³", "**3")
            text = re.sub(r"√(\w+)", r"√(\1)", text).replace("√", "root")
            text = re.sub(r"‖(.*?)‖", r"norm(\1)", text)
            values[found[1]] = eval(text, FUNCTIONS, values)


FUNCTIONS = {
    "root": torch.sqrt,
    "norm": torch.linalg.vector_norm,
    "sign": torch.sign,
    "where": torch.where,
    "min": lambda x, y: torch.clamp(x, max=y),
}


def test_a_step_count_chooses_the_program() -> None:
    opt = RAdam(parameters((3,)), lr=0.1, sqr_mom=0.9)
    opt._engine = Engine("reference")
    assert "√" not in program(opt)[-1]
    for step in range(8):
        give_grads(opt, seed=step)
        opt.step()
    assert "/(√(sqr_avg/(1 - sqr_mom^step)) + eps)" in program(opt)[-1]


def test_numbers() -> None:
    def numbers(p, lr, mom, wd, k, heat=0.5):
        p.data.mul_(1 - lr * wd).mul_(1 - (1 - mom) ** 2).mul_(-lr / (2 * k))
        p.data.add_(p.grad, alpha=math.sqrt(lr)).sub_(p.grad, alpha=lr * lr).mul_(heat**0.5)
        p.data.add_(1e-5).add_(-0.25).div_(k**-1)

    (line,) = recorded(numbers, lr=0.25, mom=0.9, wd=0.1, k=3)
    assert line == (
        "p ← (heat^0.5·(-0.5·lr/k·(1 - (1 - mom)²)·(1 - lr·wd)·p + 0.5·g - lr²·g)"
        " + 1e-5 - 0.25)/(1/k)"
    )


def test_a_name_is_computed_with_as_its_number() -> None:
    book: Any = {}
    lr, step = named(0.3, of_name("lr"), book), named(3, of_name("step"), book)
    for x, text, value in [
        (1 - lr * 2, "1 - 2·lr", 1 - 0.3 * 2),
        (lr - (step - lr), "lr - (step - lr)", 0.3 - (3 - 0.3)),
        (-(lr + step) / lr, "-(lr + step)/lr", -(0.3 + 3) / 0.3),
        ((1 - lr**step) / (1 - lr**step), "1", 1.0),
        (2 ** (step + 1), "2^(step + 1)", 16),
        (lr**2 * lr / step**4, "lr³/step^4", 0.3**2 * 0.3 / 3**4),
        (lr + -step, "lr - step", 0.3 - 3),
        (lr / (step * lr * 2), "0.5/step", 0.3 / (3 * 0.3 * 2)),
    ]:
        assert str(x.term) == text
        assert x == value
        assert book[id(float(x))][1] == x.term
    assert isinstance(lr, float)
    assert isinstance(step, int)
    assert list(range(step)) == [0, 1, 2]
    assert (lr < 1, bool(step), max(lr, 0.1) is lr) == (True, True, True)
    assert type(math.sqrt(lr)) is float
    assert torch.equal(lr * torch.ones(2), torch.full((2,), 0.3))


def test_operations() -> None:
    def wild(p, lr):
        g = p.grad.data
        a = torch.where(g.abs() > 0.5, torch.maximum(p.data, -g), g.clamp(-1, 2))
        p.data.lerp_(a, lr).addcmul_(g, g, value=-0.5).addcdiv_(g, g + 1)
        p.data.sub_((2 / g.exp() - g**-2) * g.rsqrt() ** 3)
        g.mul_(g.norm(1) + g.norm(float("inf")) - 1 / g.sum())

    assert recorded(wild, lr=0.1) == [
        "p ← p + lr·(where(|g| > 0.5, max(p, -g), min(max(g, -1), 2)) - p) - 0.5·g² + g/(g + 1)"
        " - (2/exp(g) - 1/g²)·(1/√g)³",
        "g ← g·(‖g‖₁ + ‖g‖∞ - 1/sum(g))",
    ]


def test_an_old_value_that_is_still_needed_gets_a_letter() -> None:
    def swap(p, lr, m=None):
        m = torch.zeros_like(p) if m is None else m
        old = p.data.clone()
        p.data.copy_(m)
        m.copy_(old * lr)
        return {"m": m}

    assert recorded(swap, lr=0.1) == ["u = p", "p ← m", "m ← lr·u"]


def test_what_is_needed_twice_gets_a_letter_that_is_free() -> None:
    def twice(p, lr, u=0.5):
        step = (p.grad.data * u + p.data).tanh()
        p.data.sub_(step * (1 - step), alpha=lr)

    assert recorded(twice, lr=0.1) == ["v = tanh(u·g + p)", "p ← p - lr·v·(1 - v)"]


def test_there_are_letters_enough() -> None:
    def long(p, lr):
        for _ in range(50):
            p.data.add_(p.data.exp() * p.data.log1p())

    lines = recorded(long, lr=0.1)
    assert len(lines) == 50
    assert lines[-1].startswith("p ← u₂ + exp(u₂)·")


def test_brackets() -> None:
    def terms(p, lr):
        g = p.grad.data
        p.data.copy_(g * (1 / p.data + g) - (g - (p.data - g)) / (g / p.data) + (-g) * (p.data + 1))

    assert recorded(terms, lr=0.1) == ["p ← g·(1/p + g) - (g - (p - g))/(g/p) - g·(p + 1)"]


def test_a_counter_and_a_stat_of_another_kind() -> None:
    def turns(p, turn=0, mode="warm"):
        if turn == 1:
            p.data.neg_()
        return {"turn": 1 - turn, "mode": "cold", "top": p.data.clone()}

    assert recorded(turns) == ["p ← -p", "top ← p", "turn ← 1 - turn"]


def test_a_stepper_that_looks_at_the_type_of_a_number() -> None:
    def strict(p, lr):
        p.data.sub_(p.grad.data, alpha=lr if type(lr) is float else 2 * p.grad)

    assert recorded(strict, lr=0.1) == ["p ← p - 0.1·g"]


def test_steppers_that_do_nothing_say_so() -> None:
    assert program(SGD([nn.Parameter(torch.ones(1))], lr=0.1))[1] == "  weight_decay  nothing"


# ---- which parameters run which program


def test_flags_dtypes_and_ages_are_told_apart_where_it_matters() -> None:
    ps = parameters((2,), (3,), (), (4,), dtype=torch.float32)
    opt = SGD([*ps, *parameters((2,))], lr=0.1, wd=0.1, mom=0.9)
    opt.set_flags(ps[3], do_wd=False)
    assert [line for line in program(opt) if line.endswith(":")] == [
        "  as recorded for 3 parameters in float32 and 1 parameter in float64:",
        "  as recorded for 1 parameter in float32 with do_wd=False:",
    ]


def test_a_stepper_that_asks_for_the_shape() -> None:
    def by_fan_in(p, lr):
        p.data.sub_(p.grad.data, alpha=lr / p.shape[0])

    opt = Optimizer(parameters((2, 3), (4,), (2, 3)), by_fan_in, lr=0.1)
    assert program(opt) == [
        "  as recorded for 2 parameters in float64 of shape (2, 3):",
        "  by_fan_in  p ← p - 0.5·lr·g",
        "",
        "  as recorded for 1 parameter in float64 of shape (4,):",
        "  by_fan_in  p ← p - 0.25·lr·g",
    ]


def test_several_groups_and_one_without_parameters() -> None:
    groups = [{"params": parameters((2,))}, {"params": [], "cbs": [sgd_step], "lr_mult": 0.5}]
    assert Optimizer(groups, sgd_step, lr=0.1).explain(program=True).splitlines() == [
        "group 0",
        "  sgd_step  p ← p - lr·g",
        "",
        "  as recorded for 1 parameter in float64:",
        "  sgd_step  p ← p - lr·g",
        "",
        "group 1",
        "  sgd_step  p ← p - lr·g",
        "",
        "  as recorded for parameters in float32:",
        "  sgd_step  p ← p - lr·lr_mult·g",
    ]


# ---- what cannot be recorded


def reads(p, lr):
    p.data.sub_(p.grad.data, alpha=lr * p.grad.norm().item())


def test_why_there_is_no_program() -> None:
    line = reads.__code__.co_firstlineno + 1
    opt = Optimizer(parameters((2,)), [average_grad, reads], lr=0.1, mom=0.9)
    assert program(opt) == [
        "  not recorded for 1 parameter in float64:",
        "  stepper reads cannot be fused: it reads a tensor's value on the host by .item()"
        f" (test_optim_explain.py, line {line});",
        "  the reference engine steps these one by one",
    ]


@pytest.mark.parametrize("make", [partial(Muon, lr=0.1), partial(SOAP, lr=0.1)])
def test_matrices(make: Make) -> None:
    lines = program(make(parameters((2, 2))))
    assert lines[0] == "  not recorded for 1 parameter in float64:"
    assert re.match(
        r"  (muon|soap)_step.*: it asks for \.reshape \(muon\.py, line \d+\);", lines[1]
    )
    assert lines[2].startswith("  these are stepped in stacks of one shape")


def test_not_this_time() -> None:
    def fills(p, lr, m=None):
        if m is not None:
            p.data.sub_(m, alpha=lr)
        return {"m": torch.full((2,), 2.0)} if m is None else None

    opt = Optimizer([nn.Parameter(torch.ones(2))], fills, lr=0.1)
    assert program(opt)[-1].endswith("later ones may be recorded")
    give_grads(opt)
    opt._engine = Engine("reference")
    opt.step()
    assert program(opt)[-1] == "  fills  p ← p - lr·m"


def test_other_dtypes() -> None:
    opt = SGD([nn.Parameter(torch.ones(2, dtype=torch.complex64))], lr=0.1)
    assert program(opt)[:2] == [
        "  not recorded for 1 parameter in complex64:",
        "  no program computes in that dtype;",
    ]


# ---- the source


def sources(text: str) -> Iterator[str]:
    for part in text.split("  as C:\n\n")[1:]:
        yield part.split("\n\n  as recorded")[0].split("\n\ngroup")[0]


@pytest.mark.parametrize("steps", [0, 2])
def test_the_source_is_what_is_compiled(steps: int) -> None:
    opt = Adam([parameters((2,)), parameters((3,), dtype=torch.bfloat16)], lr=0.1)
    engine = opt._engine = Engine("foreach")
    for seed in range(steps):
        give_grads(opt, seed)
        opt.step()
    shown = list(sources(opt.explain(source=True)))
    give_grads(opt)
    opt.step()
    assert shown == [c_source(p).rstrip() for p in engine.programs.values()]
    assert "g²" not in opt.explain(source=True).partition("as recorded")[2]


# ---- it changes nothing


def test_it_changes_nothing() -> None:
    def draws(p, lr):
        p.data.sub_(p.grad.data, alpha=lr * random.random())

    opt = Optimizer(parameters((2,), (3,)), [average_grad, draws], lr=0.1, mom=0.9)
    opt.param_lists[0][0].grad = torch.ones(2, dtype=torch.float64)
    opt._engine = Engine("reference")
    random.seed(0)
    for _ in range(2):
        before = random.getstate(), torch.get_rng_state()
        held = [x.clone() for x in (*opt.param_lists[0], opt.param_lists[0][0].grad)]
        state = {p: dict(stats) for p, stats in opt.state.items()}
        assert "does something else with a stand-in" in opt.explain(program=True, source=True)
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
        now = (*opt.param_lists[0], opt.param_lists[0][0].grad)
        assert all(map(torch.equal, held, now))
        assert opt.param_lists[0][1].grad is None
        assert opt.state == state
        opt.step()
    assert len(opt.state) == 1
