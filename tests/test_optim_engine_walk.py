"""What a step looks at before it relies on it, asked in C and asked in Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils import swap_tensors

from test_optim_engine_steps import (  # noqa: F401  the same, asked in Python
    on,
    test_another_dtype_in_mid_run,
    test_copies_and_resumed_runs_go_on,
    test_freezing_and_flags_in_mid_run,
    test_gradients_in_another_layout,
    test_replaced_gradients_and_moved_parameters_are_seen,
    test_state_that_a_user_writes_is_used,
    test_steps_that_a_user_writes_are_used,
    test_two_parameters_with_one_gradient,
    test_zero_grad_frees_the_gradients,
)
from treadle.optim import Adam
from treadle.optim.engine import bucket, walk


@pytest.fixture(autouse=True)
def asked_in_python(request, monkeypatch):
    if request.function.__module__ != __name__:
        monkeypatch.setattr(bucket, "walk", lambda *_: None)


def moved(t: torch.Tensor) -> torch.Tensor:
    return t.detach().clone()


def transposed(t: torch.Tensor) -> torch.Tensor:
    return t.detach().mT.contiguous().mT


def in_float64(p: nn.Parameter) -> None:
    p.grad_dtype = None  # else torch takes none of another dtype
    p.grad = p.grad.double()


def anew_by_autograd(p: nn.Parameter) -> None:
    """A gradient that no object of Python's stands for yet."""
    p.grad = None
    (3 * p).sum().backward()


# Name -> what is done to a parameter and its stats, and whether the plan still holds.
CHANGES = {
    "nothing": (lambda p, s: None, True),
    "the gradient replaced": (lambda p, s: setattr(p, "grad", moved(p.grad)), True),
    "the gradient made anew by autograd": (lambda p, s: anew_by_autograd(p), True),
    "the gradient changed in place": (lambda p, s: p.grad.mul_(2), True),
    "no gradient": (lambda p, s: setattr(p, "grad", None), False),
    "a sparse gradient": (lambda p, s: setattr(p, "grad", p.grad.to_sparse()), False),
    "a gradient in another dtype": (lambda p, s: in_float64(p), False),
    "a gradient of another class": (lambda p, s: setattr(p, "grad", nn.Parameter(p.grad)), False),
    "frozen": (lambda p, s: p.requires_grad_(False), False),
    "the parameter moved": (lambda p, s: setattr(p, "data", moved(p)), False),
    "the parameter swapped": (lambda p, s: swap_tensors(p, nn.Parameter(moved(p))), False),
    "its entries reordered": (lambda p, s: setattr(p.grad, "data", transposed(p.grad)), False),
    "a stat replaced": (lambda p, s: s.update(grad_avg=moved(s["grad_avg"])), False),
    "a stat swapped": (lambda p, s: swap_tensors(s["sqr_avg"], moved(s["sqr_avg"])), False),
    "a stat moved": (lambda p, s: setattr(s["sqr_avg"], "data", moved(s["sqr_avg"])), False),
    "a stat that is a number": (lambda p, s: s.update(grad_avg=1.0), False),
    "a stat gone": (lambda p, s: s.pop("sqr_avg"), False),
    "a stat more": (lambda p, s: s.update(new=1), False),
    "stats cleared": (lambda p, s: s.clear(), False),
    "another number": (lambda p, s: s.update(step=7), False),
}  # fmt: skip


def test_torch_can_be_asked():
    """Else all that is told here would be told in Python, which is slower and seen by nobody."""
    assert walk._torch() is not None


def test_a_gradient_kept_with_the_other_sign():
    """What autograd makes of some functions of a conjugate; strides cannot tell where one entry
    is all there is."""
    params = [
        nn.Parameter(torch.ones(())),
        nn.Parameter(torch.ones(1)),
        nn.Parameter(torch.ones(2)),
    ]
    for engine in ("c", "foreach"):
        steps = []
        for kind in (engine, "reference"):
            mine = [nn.Parameter(p.detach().clone()) for p in params]
            opt = on(Adam(mine, lr=0.1), kind)
            for negated in (False, False, True, False):
                for p in mine:
                    z = torch.full(p.shape, -1 + 3j)
                    p.grad = z.conj().imag if negated else torch.full_like(p, 2.0)
                    assert p.grad.is_neg() == negated
                opt.step()
            steps.append([p.detach() for p in mine])
        for ours, theirs in zip(*steps, strict=True):
            torch.testing.assert_close(ours, theirs)


@given(change=st.sampled_from(sorted(CHANGES)), which=st.integers(0, 4))
def test_both_see_what_has_changed(change, which):
    params = [nn.Parameter(torch.ones(2, 3)) for _ in range(5)]
    opt = on(Adam(params, lr=0.1), "c")
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
    (found,) = opt._engine._plan.buckets
    if found._look is None:
        pytest.skip("no C compiler")  # see `test_torch_can_be_asked`
    assert found._look() and found._seen_fresh()
    act, holds = CHANGES[change]
    act(params[which], opt.state[params[which]])
    assert found._look() == holds
    addresses = list(found.table)
    assert found._seen_fresh() == holds
    if holds:
        assert list(found.table) == addresses
        assert addresses[5 + which] == params[which].grad.data_ptr()
