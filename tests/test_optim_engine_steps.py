"""What the engine does between the programs: recording, falling back, noticing changes, caching."""

from __future__ import annotations

import copy
import math
import os
import random
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from treadle import native
from treadle.errors import UsageError
from treadle.optim import SGD, Adam, Lamb, Optimizer, RAdam, average_grad, momentum_step, sgd_step
from treadle.optim.engine import Engine, fused, walk
from treadle.optim.engine.codegen_c import c_source


def parameter(*values: float) -> nn.Parameter:
    p = nn.Parameter(torch.tensor(values))
    p.grad = torch.ones_like(p.data)
    return p


def on(opt: Optimizer, kind: str) -> Optimizer:
    opt._engine = Engine(kind)
    return opt


def programs(opt: Optimizer) -> int:
    assert opt._engine is not None
    return len(opt._engine.programs)


# ---- programs


def test_a_one_cycle_of_radam_takes_two_programs():
    opt = on(RAdam([parameter(1.0, 2.0), parameter(3.0)], lr=0.1, sqr_mom=0.99, wd=0.01), "c")
    for step in range(40):
        there = step / 39
        opt.set_hypers(
            lr=0.1 * math.sin(math.pi * there),  # 0 at both ends
            mom=0.95 - 0.1 * math.sin(math.pi * there),
            wd=0.01 + there,
        )
        opt.step()
    assert programs(opt) == 2


@pytest.mark.parametrize("value", [0.0, 1.0, 1, -1, 0.3])
def test_no_value_of_a_number_is_special(value):
    opt = on(SGD([parameter(1.0)], lr=0.1, mom=0.9), "c")
    opt.step()
    opt.set_hypers(lr=value, mom=value)
    opt.step()
    assert programs(opt) == 1


def test_a_branch_on_the_step_is_another_program():
    def warm_up(p, lr, step=0):
        if step < 2:
            lr = lr / 10
        p.data.add_(p.grad.data, alpha=-lr)
        if step >= 4:
            p.data.clamp_(min=0.0)
        return {"step": step + 1}

    p = parameter(0.3)
    opt = on(Optimizer([p], warm_up, lr=0.1), "c")
    for _ in range(6):
        opt.step()
    assert programs(opt) == 2
    assert p.item() == 0.0


def test_zeros_made_in_the_first_step_need_no_program_of_their_own():
    def stepper(p, lr, mom, m=None):
        if m is None:
            m = torch.zeros_like(p.grad.data)
        p.data.add_(m, alpha=-lr)
        return {"m": m * mom + p.grad.data}

    opt = on(Optimizer([parameter(1.0)], stepper, lr=0.1, mom=0.9), "c")
    for _ in range(3):
        opt.step()
    assert programs(opt) == 1


def test_parameters_of_different_ages_share_the_program():
    a, b = parameter(1.0), parameter(1.0)
    opt = on(Adam([a, b], lr=0.1), "c")
    b.grad = None
    opt.step()
    b.grad = torch.ones(1)
    opt.step()
    assert (opt.state[a]["step"], opt.state[b]["step"]) == (2, 1)
    assert programs(opt) == 1


def test_a_state_tensor_stays_the_same_object():
    p = parameter(1.0, 2.0)
    opt = on(SGD([p], lr=0.1, mom=0.9), "c")
    opt.step()
    kept = opt.state[p]["grad_avg"]
    opt.step()
    assert opt.state[p]["grad_avg"] is kept
    assert kept.tolist() == pytest.approx([1.9, 1.9])


def test_a_gradient_changed_in_place_is_seen():
    p = parameter(2.0)
    on(SGD([p], lr=0.1, wd=0.5, decouple_wd=False), "c").step()
    assert p.grad.item() == 2.0


def test_five_hundred_tensors_are_one_bucket():
    opt = on(SGD([parameter(1.0, 2.0) for _ in range(500)], lr=0.1), "c")
    opt.step()
    assert len(opt._engine._plan.buckets) == 1
    assert all(p.tolist() == pytest.approx([0.9, 1.9]) for p in opt.param_lists[0])


def test_a_recording_leaves_no_cycle_behind():
    import gc

    opt = on(Adam([parameter(1.0)], lr=0.1), "c")
    for _ in range(3):
        opt.step()
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            opt.step()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_chain_may_ask_for_the_shape():
    def by_fan_in(p, lr, **kwargs):
        fan_in = p.shape[1] if p.ndim > 1 else 1
        p.data.sub_(p.grad.data, alpha=lr / fan_in)

    w, b = nn.Parameter(torch.zeros(2, 4)), nn.Parameter(torch.zeros(2))
    w.grad, b.grad = torch.ones(2, 4), torch.ones(2)
    opt = on(Optimizer([w, b], by_fan_in, lr=1.0), "c")
    for _ in range(2):
        opt.step()
    assert set(w.flatten().tolist()) == {-0.5}
    assert set(b.tolist()) == {-2.0}


# ---- what cannot be recorded


def reads(p, lr, **kwargs):
    if p.grad.data.abs().max().item() < 10:
        p.data.sub_(p.grad.data, alpha=lr)


def test_a_read_of_a_value_warns_once_and_says_where():
    p = parameter(1.0)
    opt = on(Optimizer([p], [average_grad, reads], lr=0.1, mom=0.9), "c")
    with pytest.warns(UserWarning) as caught:
        opt.step()
    opt.step()
    (warning,) = caught
    line = reads.__code__.co_firstlineno + 1
    assert "stepper reads" in str(warning.message)
    assert ".item()" in str(warning.message)
    assert f"{Path(__file__).name}, line {line}" in str(warning.message)
    assert warning.filename == __file__
    assert p.item() == pytest.approx(0.8)
    assert opt.state[p]["grad_avg"].item() == pytest.approx(1.9)


def unknown(p, lr):
    p.data.sub_(torch.cumsum(p.grad.data, 0), alpha=lr)


def foreign(p, lr):
    p.data.sub_(p.grad.data * torch.tensor(2.0), alpha=lr)


def branches(p, lr):
    if p.grad.data.sum() > 0:
        p.data.sub_(p.grad.data, alpha=lr)


def aliases(p, lr, last=None):
    p.data.sub_(p.grad.data, alpha=lr)
    return {"last": p.grad}


def draws(p, lr):
    p.data.sub_(torch.ones_like(p.data) + 0 * torch.rand_like(p.data), alpha=lr)


def swallows(p, lr):
    try:
        lr = lr * p.mystery
    except Exception:
        lr = lr / 2
    p.data.sub_(p.grad.data, alpha=lr)


@pytest.mark.parametrize("stepper", [unknown, foreign, branches, aliases, draws, swallows])
def test_it_runs_on_the_reference_engine(stepper):
    ends = []
    for kind in ("reference", "c"):
        p = parameter(1.0, 2.0)
        opt = on(Optimizer([p], stepper, lr=0.1), kind)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                opt.step()
        assert len(caught) == (kind == "c")
        ends.append(p.detach())
    assert torch.equal(*ends)


def asks_the_type(p, lr):
    p.data.add_(p.grad.data, alpha=-lr if isinstance(p.data, torch.Tensor) else lr)


def tosses_a_coin(p, lr):
    p.data.add_(p.grad.data, alpha=-lr * random.random())


def counts_for_itself(p, lr, seen=[0]):  # noqa: B006  what is tried
    p.data.add_(p.grad.data, alpha=-lr * seen[0])
    seen[0] += 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stepper", [asks_the_type, tosses_a_coin, counts_for_itself])
def test_a_stepper_that_sees_through_the_stand_in_is_not_fused(stepper, dtype):
    opt = on(Optimizer([parameter(1.0), parameter(1.0)], stepper, lr=0.5), "c")
    a, b = opt.param_groups[0]["params"]
    for p in (a, b):
        p.data, p.grad = p.data.to(dtype), p.grad.to(dtype)
    with pytest.warns(UserWarning, match=f"{stepper.__name__} cannot be fused: it does something"):
        opt.step()
    assert a.item() < 1.0
    assert programs(opt) == 0
    if stepper is tosses_a_coin:
        assert a.item() != b.item()


def test_what_a_stepper_keeps_by_parameter_is_kept():
    kept = {}

    def momentum(p, lr):
        avg = kept.setdefault(p, torch.zeros_like(p.data))
        avg.mul_(0.9).add_(p.grad.data)
        p.data.sub_(avg, alpha=lr)

    p = parameter(0.0)
    opt = on(Optimizer([p], momentum, lr=1.0), "c")
    with pytest.warns(UserWarning, match=r"momentum cannot be fused: it uses a tensor as a key"):
        for _ in range(3):
            opt.step()
    assert p.item() == pytest.approx(-5.61)


def test_a_fault_of_types_is_placed():
    def shift(p, lr):
        p.data.add_((p.grad > 0) * lr)

    opt = on(Optimizer([parameter(1.0)], shift, lr=0.5), "c")
    where = r"stepper shift cannot be fused: it calls mul on truth values \(test_optim.*line \d+"
    with pytest.warns(UserWarning, match=where):
        opt.step()


def test_what_a_stepper_raises_is_raised():
    def refuses(p, lr):
        if lr > 1:
            raise ZeroDivisionError("no")
        p.data.sub_(p.grad.data, alpha=lr)

    p = parameter(1.0)
    opt = on(Optimizer([p], refuses, lr=0.5), "c")
    opt.set_hyper("lr", 2.0)
    with pytest.raises(ZeroDivisionError, match="no"):
        opt.step()
    opt.set_hyper("lr", 0.5)
    opt.step()
    assert p.item() == 0.5


def test_only_the_chain_that_needs_it_falls_back():
    a, b = parameter(1.0), parameter(1.0)
    groups = [{"params": [a]}, {"params": [b], "cbs": [reads]}]
    opt = on(Optimizer(groups, sgd_step, lr=0.1), "c")
    with pytest.warns(UserWarning, match="stepper reads"):
        opt.step()
    opt.step()
    assert [a.item(), b.item()] == pytest.approx([0.8, 0.8])
    assert programs(opt) == 1


def test_a_learning_rate_in_a_tensor_is_left_to_the_reference_engine():
    p = parameter(1.0)
    opt = on(SGD([p], lr=0.5), "c")
    opt.step()
    opt.set_hyper("lr", torch.tensor(0.25))
    opt.step()
    assert p.item() == 0.25


# ---- what may change between two steps


def test_replaced_gradients_and_moved_parameters_are_seen():
    p = parameter(1.0)
    opt = on(SGD([p], lr=1.0), "c")
    opt.step()
    p.grad = torch.tensor([2.0])
    opt.step()
    assert p.item() == -2.0
    p.data = torch.tensor([10.0])
    opt.step()
    assert p.item() == 8.0


def test_zero_grad_frees_the_gradients():
    p = parameter(1.0)
    opt = on(SGD([p], lr=1.0), "c")
    opt.step()
    last = weakref.ref(p.grad)
    opt.zero_grad()
    assert p.grad is None
    assert last() is None


def test_state_that_a_user_writes_is_used():
    p = parameter(0.0)
    opt = on(SGD([p], lr=1.0, mom=0.5), "c")
    opt.step()
    opt.state[p]["grad_avg"] = torch.tensor([4.0])
    opt.step()
    assert p.item() == -4.0  # 1, then 4/2 + 1
    opt.state[p]["grad_avg"].data = torch.tensor([0.0])
    opt.step()
    assert p.item() == -5.0
    mine = opt.state[p] = dict(opt.state[p])
    opt.step()
    assert p.item() == -6.5
    assert mine["grad_avg"].item() == 1.5
    opt.clear_state()
    opt.step()
    assert p.item() == -7.5


def test_steps_that_a_user_writes_are_used():
    a, b = parameter(1.0), parameter(1.0)
    opt = on(Adam([a, b], lr=0.1), "c")
    opt.step()
    opt.state[a]["step"] = 10
    opt.step()
    assert (opt.state[a]["step"], opt.state[b]["step"]) == (11, 2)


def test_another_dtype_in_mid_run():
    model = nn.Linear(2, 1)
    opt = on(SGD(model.parameters(), lr=0.5), "c")
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model.to(dtype)
        for p in model.parameters():
            p.data.fill_(1.0)
            p.grad = torch.ones_like(p.data)
        opt.step()
        assert all(set(p.flatten().tolist()) == {0.5} for p in model.parameters())


def test_freezing_and_flags_in_mid_run():
    a, b = parameter(1.0), parameter(1.0)
    opt = on(SGD([[a], [b]], lr=0.1, wd=1.0), "c")
    opt.step()
    opt.set_flags(b, do_wd=False)
    opt.step()
    assert [a.item(), b.item()] == pytest.approx([0.62, 0.7])
    a.requires_grad_(False)
    opt.step()
    assert a.item() == pytest.approx(0.62)
    assert b.item() == pytest.approx(0.6)


def test_gradients_in_another_layout():
    p = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    opt = on(SGD([p], lr=1.0), "c")
    for g in (torch.eye(2, 3), torch.eye(3, 2).T, torch.ones(1).expand(2, 3)):
        before = p.detach().clone()
        p.grad = g
        opt.step()
        assert torch.equal(p.detach(), before - g)


def test_two_parameters_with_one_gradient():
    a, b = parameter(1.0), parameter(1.0)
    opt = on(SGD([a, b], lr=0.5, wd=1.0, decouple_wd=False), "c")
    opt.step()
    a.grad = b.grad = torch.ones(1)
    a.data.fill_(1.0)
    b.data.fill_(1.0)
    opt.step()  # a takes g + a = 2, and then b finds 2 there and takes 2 + b
    assert [a.item(), b.item()] == [0.0, -0.5]


def test_two_parameters_in_one_memory():
    a = parameter(1.0)
    b = nn.Parameter(a.data)
    b.grad = torch.ones(1)
    on(SGD([a, b], lr=0.25), "c").step()
    assert a.item() == 0.5


def test_copies_and_resumed_runs_go_on():
    p = parameter(1.0, 2.0)
    opt = on(Adam([p], lr=0.1), "c")
    opt.step()
    twin = copy.deepcopy(opt)
    twin.param_groups[0]["params"][0].grad = torch.ones(2)
    again = parameter(*p.tolist())
    resumed = on(Adam([again], lr=0.1), "c")
    resumed.load_state_dict(opt.state_dict())
    for each in (opt, twin, resumed):
        each.step()
    assert torch.equal(p, again)
    assert torch.equal(p, twin.param_groups[0]["params"][0])


# ---- torch's hooks


def test_hooks_are_called_once_and_may_change_the_closure():
    p, calls = parameter(1.0), []
    opt = SGD([p], lr=0.1)
    opt.step()
    opt.register_step_pre_hook(lambda o, args, kwargs: calls.append("pre"))
    opt.register_step_post_hook(lambda o, args, kwargs: calls.append("post"))
    assert opt.step(lambda: calls.append("closure") or 3) == 3
    assert calls == ["pre", "closure", "post"]


def test_hooks_of_a_subclass_with_a_step_of_its_own_are_called_once():
    class Own(Optimizer):
        def step(self, closure=None):
            return super().step(closure)

    calls = []
    opt = Own([parameter(1.0)], sgd_step, lr=0.1)
    opt.register_step_post_hook(lambda o, args, kwargs: calls.append("post"))
    opt.step()
    assert calls == ["post"]


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # of torch 2.11
def test_the_profiler_sees_the_step():
    opt = SGD([parameter(1.0)], lr=0.1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
    assert any("Optimizer.step#Optimizer.step" in e.key for e in profile.key_averages())


# ---- the compiler and the folder


def test_the_environment_chooses_the_engine(monkeypatch):
    monkeypatch.setenv("TREADLE_ENGINE", "foreach")
    assert Engine().kind == "foreach"
    monkeypatch.setenv("TREADLE_ENGINE", "fortran")
    with pytest.raises(UsageError, match="c, foreach, reference"):
        Engine()


def a_source() -> str:
    """A source that no other test has built."""
    opt = on(SGD([parameter(1.0)], lr=0.1), "foreach")
    opt.step()
    (program,) = opt._engine.programs.values()
    return f"{c_source(program)}/* {random.random()} */"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    walk._compiled()  # the first step of the process builds that, too
    monkeypatch.setenv("TREADLE_HOME", str(tmp_path))
    return tmp_path / "kernels"


def test_what_is_in_the_folder_is_not_built_again(folder, monkeypatch):
    source = a_source()
    native.build(source)
    (made,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(native, "_compile", lambda *args: pytest.fail("compiled again"))
    native.build(source)
    assert [*folder.iterdir()] == [made]


@pytest.mark.parametrize("damage", [b"", b"not a library"])
def test_a_damaged_file_is_built_again(folder, damage):
    source = a_source()
    native.build(source)
    (made,) = folder.iterdir()
    made.unlink()  # this process has it mapped
    made.write_bytes(damage)
    native.build(source)
    (again,) = folder.iterdir()
    assert again.stat().st_size > 1000


@pytest.fixture
def half_a_compiler(tmp_path, monkeypatch) -> Path:
    """One whose libraries need another if they have several threads, and that is not there."""
    script = tmp_path / "half"
    script.write_text(
        '#!/bin/sh\ncase "$*" in *-fopenmp\\ *) set -- "$@" -include "$0.h";; esac\nexec cc "$@"\n'
    )
    script.chmod(0o700)
    Path(f"{script}.h").write_text("extern int nowhere(void); int here(void) { return nowhere(); }")
    monkeypatch.setenv("CC", str(script))
    native._compiler.cache_clear()
    yield script
    native._compiler.cache_clear()


def test_a_library_that_cannot_be_loaded_is_made_in_another_way(folder, half_a_compiler):
    source = a_source()
    native.build(source)
    (made,) = folder.iterdir()
    assert b"nowhere" not in made.read_bytes()


def test_a_library_that_can_no_longer_be_loaded_is_made_again(folder, tmp_path):
    source = a_source()
    native.build(source)
    (made,) = folder.iterdir()
    key = made.name.partition("-")[0]
    made.unlink()
    text, broken = tmp_path / "broken.c", tmp_path / "broken.so"
    text.write_text("extern int nowhere(void); int here(void) { return nowhere(); }")
    subprocess.run(["cc", "-shared", "-fPIC", str(text), "-o", str(broken)], check=True)
    broken.rename(folder / f"{key}-{native._digest(broken)}.so")
    native.build(source)
    (again,) = folder.iterdir()
    assert again.name != broken.name and b"nowhere" not in again.read_bytes()


def test_a_folder_that_others_may_write_to_is_not_used(folder):
    folder.mkdir()
    folder.chmod(0o777)
    native.build(a_source())
    assert not [*folder.iterdir()]


def test_a_link_is_not_used(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    native.build(a_source())
    assert not [*elsewhere.iterdir()]


def test_processes_that_build_at_once(folder):
    code = (
        "import torch; from treadle.optim import SGD; p = torch.nn.Parameter(torch.ones(3));"
        "p.grad = torch.ones(3); o = SGD([p], lr=0.5); o.step(); print(p.tolist())"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [child.communicate()[0].strip() for child in children] == ["[0.5, 0.5, 0.5]"] * 2
    assert {path.suffix for path in folder.iterdir()} == {".so"}


def test_without_a_compiler_the_program_runs_eagerly(monkeypatch):
    def none(source: str) -> None:
        raise native.NoCompiler("no C compiler is on the PATH")

    monkeypatch.setattr(fused, "build", none)
    monkeypatch.setattr(fused, "_kernels", {})
    p = parameter(1.0, 2.0)
    opt = Lamb([p], lr=0.1)
    for _ in range(2):
        opt.step()
    assert programs(opt) == 1
    assert p[0].item() < 1.0


def test_a_stat_may_have_any_name():
    def odd(p, lr, **kwargs):
        m = kwargs.get("p avg/Δ", torch.zeros_like(p.grad.data))
        return {"p avg/Δ": m + p.grad.data, "double": m * 2}

    p = parameter(1.0)
    opt = on(Optimizer([p], [odd, sgd_step], lr=0.5), "c")
    for _ in range(3):
        opt.step()
    assert opt.state[p]["p avg/Δ"].item() == 3.0
    assert opt.state[p]["double"].item() == 4.0


def test_momentum_by_hand():
    p = parameter(1.0)
    opt = on(Optimizer([p], [average_grad, momentum_step], lr=0.5, mom=0.5), "c")
    for _ in range(2):
        opt.step()
    assert p.item() == 1.0 - 0.5 - 0.75
