"""Stacks of parameters under torch.vmap, against the same chain parameter by parameter."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from treadle.optim import SOAP, Muon, Optimizer, average_grad, momentum_step, muon_step, sgd_step
from treadle.optim.engine import batched
from treadle.optim.engine.batched import run_batched
from treadle.optim.engine.reference import run_chain

Make = Callable[[Any], Optimizer]


@pytest.fixture(autouse=True)
def small_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack takes from two parameters on, so that tests may be small."""
    monkeypatch.setattr(batched, "_FEWEST", 2)


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the stacks that have been tried."""
    sizes: list[int] = []

    class Counted(batched._Stack):
        def __init__(self, chain: Any, params: list[Tensor], *rest: Any) -> None:
            sizes.append(len(params))
            super().__init__(chain, params, *rest)

    monkeypatch.setattr(batched, "_Stack", Counted)
    return sizes


def believed(opt: Optimizer) -> bool:
    """Whether all that was tried in stacks went well."""
    return min(opt._chains[0].__dict__["trials"].values()) > 0


def take(opt: Optimizer, run: Callable[..., None] = run_batched) -> None:
    """A step of `opt`, by `run`."""
    for group, chain, hypers in zip(opt.param_groups, opt._chains, opt.hypers, strict=True):
        with torch.no_grad():
            run(chain, opt._ready(group), dict(hypers), opt.state, opt._flags)


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=draw).to(dtype)) for s in shapes]


def flat(opt: Optimizer) -> list[Tensor]:
    return [p for params in opt.param_lists for p in params]


def give_grads(*opts: Optimizer, seed: int = 0, without: tuple[int, ...] = ()) -> None:
    for opt in opts:
        draw = torch.Generator().manual_seed(seed)
        for i, p in enumerate(flat(opt)):
            g = torch.randn(p.shape, generator=draw).to(p.dtype)
            p.grad = None if i in without or not p.requires_grad else g


def same(a: Optimizer, b: Optimizer, tol: float = 1e-10) -> None:
    """Raise if the two do not hold the same."""
    for p, q in zip(flat(a), flat(b), strict=True):
        close(p, q, tol)
        if p.grad is not None:
            close(p.grad, q.grad, tol)
        mine, theirs = a.state.get(p, {}), b.state.get(q, {})
        assert list(mine) == list(theirs)
        for name, x in mine.items():
            if isinstance(x, Tensor):
                close(x, theirs[name], tol)
            else:
                assert type(x) is type(theirs[name])
                assert x == theirs[name]


def close(a: Tensor, b: Tensor, tol: float) -> None:
    assert (a.shape, a.dtype, type(a)) == (b.shape, b.dtype, type(b))
    torch.testing.assert_close(a.detach(), b.detach(), rtol=tol, atol=tol)


# ---- matrix steppers as users write them


def outer(p, lr, every=2, rows=None, cols=None, age=0, **kwargs):
    """Adafactor's second moment: the outer product of two averages."""
    square = p.grad.data**2
    if rows is None:
        rows, cols = torch.zeros(square.shape[0]).to(square), square.new_zeros(square.shape[1])
    rows = 0.9 * rows + 0.1 * square.mean(1)
    cols = cols.lerp(square.mean(0), 0.1).clamp_(min=1e-9)
    if age % every:
        p.data.mul_(0.99)
    v = torch.outer(rows, cols) / rows.mean()
    p.data.addcdiv_(p.grad.data, v.sqrt() + 1e-3, value=-lr)
    return {"rows": rows, "cols": cols, "age": age + 1}


def polar(p, lr, **kwargs):
    """Orthogonalized by a decomposition; the gradient is scaled on the way, and kept so."""
    p.grad.data.div_(p.grad.data.norm())
    u, _, vt = torch.linalg.svd(p.grad.data, full_matrices=False)
    p.data -= lr * u @ vt


def assigned(p, lr, side=None):
    side = 1e-3 * torch.eye(p.shape[0]).to(p) if side is None else side
    side = side + p.grad @ p.grad.mT
    side += 1e-3
    p.data = p.data - lr * torch.linalg.solve(side, p.grad.data)
    return {"side": side}


exact_muon = partial(muon_step, ns_dtype=torch.float64)
MAKES: dict[str, Make] = {
    "muon": lambda ps: Optimizer(ps, [average_grad, exact_muon], lr=0.1, mom=0.9),
    "soap": lambda ps: SOAP(ps, lr=0.1, every=3),
    "outer": lambda ps: Optimizer(ps, outer, lr=0.1),
    "polar": lambda ps: Optimizer(ps, [average_grad, polar, momentum_step], lr=0.1, mom=0.9),
    "assigned": lambda ps: Optimizer(ps, assigned, lr=0.1),
}
SHAPES = [(4, 4), (3, 3), (4, 4), (4, 4), (3, 3), (2, 2), (4, 4)]


@pytest.mark.parametrize("name", MAKES)
def test_it_agrees(name: str, stacks: list[int]) -> None:
    """Mixed shapes; a group of one; ages that differ; flags; one frozen in mid-run."""
    a, b = MAKES[name](drawn(*SHAPES)), MAKES[name](drawn(*SHAPES))
    for step in range(9):
        if step == 3:
            for opt in (a, b):
                opt.param_lists[0][2].requires_grad_(False)
                if "every" in opt.hyper_names:
                    opt.set_flags(opt.param_lists[0][4], every=1)
        give_grads(a, b, seed=step, without=(3,) if step < 2 else ())
        take(a, run_chain)
        take(b)
        same(a, b)
    assert believed(b)
    assert set(stacks) <= {2, 3, 4}
    assert len(stacks) >= 6


def test_convolutions_of_any_layout(stacks: list[int]) -> None:
    shapes = [(4, 3, 2, 2)] * 3
    a, b = MAKES["muon"](drawn(*shapes)), MAKES["muon"](drawn(*shapes))
    for opt in (a, b):
        ps = opt.param_lists[0]
        ps[0].data = ps[0].data.contiguous(memory_format=torch.channels_last)
        ps[1].data = torch.randn(4, 3, 2, 4).double()[..., ::2].copy_(ps[1].data)  # with gaps
    for step in range(5):
        give_grads(a, b, seed=step)
        for opt in (a, b):
            ps = opt.param_lists[0]
            ps[0].grad = ps[0].grad.contiguous(memory_format=torch.channels_last)
        take(a, run_chain)
        take(b)
        same(a, b)
    assert stacks == [2] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision(dtype: torch.dtype, stacks: list[int]) -> None:
    """As `Muon` is meant to be used; the orthogonalization is in bfloat16 in any case."""
    shapes = [(16, 8)] * 4
    a, b = Muon(drawn(*shapes, dtype=dtype), lr=0.1), Muon(drawn(*shapes, dtype=dtype), lr=0.1)
    for step in range(4):
        give_grads(a, b, seed=step)
        take(a, run_chain)
        take(b)
    same(a, b, tol=0.05)
    assert stacks == [4] * 4


def test_stats_own_their_memory() -> None:
    opt = SOAP(drawn(*[(4, 4)] * 3), lr=0.1)
    for step in range(5):
        give_grads(opt, seed=step)
        take(opt)
        kept = [x for stats in opt.state.values() for x in stats.values() if isinstance(x, Tensor)]
        assert len({x.untyped_storage().data_ptr() for x in kept}) == len(kept) == 18
        assert all(x.untyped_storage().nbytes() == x.nbytes for x in kept)


def test_a_stat_stays_the_same_object(stacks: list[int]) -> None:
    opt = MAKES["outer"](drawn(*[(4, 4)] * 3))
    give_grads(opt)
    for _ in range(3):  # the first step, and two trials
        take(opt)
    kept = [stats["rows"] for stats in opt.state.values()]
    before = kept[0].clone()
    take(opt)
    assert all(stats["rows"] is x for stats, x in zip(opt.state.values(), kept, strict=True))
    assert not torch.equal(before, kept[0])
    assert stacks == [3] * 4


IN_PLACE: dict[str, Callable[[Any, Any], Any]] = {
    "addcdiv_": lambda x, y: x.addcdiv_(y, y.abs() + 1, value=0.5),
    "addcmul_": lambda x, y: x.addcmul_(y, y, value=0.5),
    "addmm_": lambda x, y: x.addmm_(y, y, beta=0.5),
    "clamp_": lambda x, y: x.clamp_(-0.5, 0.5),
    "clip_": lambda x, y: x.clip_(min=-0.5),
    "fmod_": lambda x, y: x.fmod_(0.3),
    "hypot_": lambda x, y: x.hypot_(y),
    "lerp_": lambda x, y: x.lerp_(y, 0.3),
    "negative_": lambda x, y: x.negative_(),
    "pow_": lambda x, y: x.pow_(3),
    "remainder_": lambda x, y: x.remainder_(0.3),
    "square_": lambda x, y: x.square_(),
    "subtract_": lambda x, y: x.subtract_(y),
    "tril_": lambda x, y: x.tril_(),
    "triu_": lambda x, y: x.triu_(1),
    "xlogy_": lambda x, y: x.xlogy_(y.abs()),
}


@pytest.mark.parametrize("name", sorted(batched._OUT_OF_PLACE))
def test_operations_in_place_that_vmap_does_not_know(name: str, stacks: list[int]) -> None:
    def stepper(p, lr):
        IN_PLACE[name](p.data, p.grad.data)
        IN_PLACE[name](p.grad, p.data.T)

    a, b = (Optimizer(drawn((3, 3), (3, 3)), stepper, lr=0.1) for _ in range(2))
    for step in range(3):
        give_grads(a, b, seed=step)
        take(a, run_chain)
        take(b)
        same(a, b)
    assert believed(b)
    assert stacks == [2, 2, 2]


# ---- how large a stack may be


def test_a_stack_is_bounded(stacks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "_CPU", (100, 100))
    # Of 16 entries, and as many for momentum, or, where nothing is kept, the square of a side.
    for name in ("muon", "assigned", "polar"):
        opt = MAKES[name](drawn(*[(4, 4)] * 7))
        for _ in range(3):
            give_grads(opt)
            take(opt)
        assert stacks == [3, 3, 1] * 3, name
        stacks.clear()


def test_large_and_few_ones_go_one_by_one(
    stacks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    opt = MAKES["muon"](drawn((200, 200), (200, 200), (1, 200), (1, 200)))
    monkeypatch.setattr(batched, "_FEWEST", 3)
    give_grads(opt)
    take(opt)
    monkeypatch.setattr(batched, "_FEWEST", 2)
    for _ in range(3):
        take(opt)
    assert stacks == [2, 2, 2]  # the rows, once it is known that no square of them is kept


# ---- what no stack can take


def reads(p, lr, m=None):
    m = torch.zeros_like(p) if m is None else m
    m.add_(p.grad.data)
    p.data.sub_(m, alpha=lr)
    p.grad.data.zero_()
    if m.norm().item() > 1e9:
        p.data.zero_()
    return {"m": m}


def branches(p, lr):
    p.data.sub_(p.grad.data, alpha=lr)
    if p.grad.data.sum() > 0:
        p.data.mul_(0.5)


def draws(p, lr):
    p.data.sub_(torch.rand_like(p.data) * 0 + p.grad.data, alpha=lr)


def fills(p, lr):
    m = torch.zeros(p.shape, dtype=p.dtype)
    m.add_(p.grad)
    p.data.sub_(m, alpha=lr)


def swallows(p, lr):
    p.data.mul_(0.5)
    try:
        lr = lr + float(p.data.sum()) * 0
    except RuntimeError:
        lr = 0
    p.data.sub_(p.grad.data, alpha=lr)


def loops(p, lr):
    p.data.sub_(p.grad.data * torch.quantile(p.grad.data, 0.5), alpha=lr)


def aliases(p, lr, last=None):
    p.data.sub_(p.grad.data, alpha=lr)
    return {"last": p.grad.view(-1)}


def twice(p, lr, m=None, n=None):
    m = torch.zeros_like(p.data) if m is None else m
    return {"m": m, "n": m}


def lists(p, lr, seen=None):
    p.data.sub_(p.grad.data, alpha=lr)
    return {"seen": [*(seen or []), 1]}


def replaces(p, lr):
    p.grad = p.grad * 2
    p.data.sub_(p.grad.data, alpha=lr)


def keeps_what_it_assigned(p, lr, ahead=None):
    ahead = p.data - lr * p.grad.data
    p.data = ahead
    p.data.mul_(2)
    return {"ahead": ahead.clone()}


def turns(p, lr):
    g = p.grad.data.clone()
    g.t_()
    p.data.sub_(g, alpha=lr)


def mixes(p, lr):
    g = p.grad.data
    p.data.sub_(torch.where(g > 0, g, g.float().norm()), alpha=lr)


class Counts:
    def __init__(self) -> None:
        self.calls = torch.zeros(())

    def __call__(self, p: Any, lr: float) -> None:
        self.calls.add_(1)
        p.data.sub_(p.grad.data * self.calls, alpha=lr)


ALONE = [
    reads, branches, draws, fills, swallows, loops, aliases, twice, lists, replaces,
    keeps_what_it_assigned, turns, mixes, Counts(),
]  # fmt: skip


@pytest.mark.parametrize("stepper", ALONE, ids=lambda f: getattr(f, "__name__", "counts"))
def test_it_goes_one_by_one_and_is_not_tried_again(stepper: Any, stacks: list[int]) -> None:
    makes = [
        partial(Optimizer, cbs=copy.deepcopy([average_grad, stepper]), lr=0.1, mom=0.9)
        for _ in range(2)
    ]
    a, b = (make(drawn((3, 3), (3, 3), (3, 3))) for make in makes)
    tries = []
    for step in range(5):
        give_grads(a, b, seed=step)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            take(a, run_chain)
            take(b)
        same(a, b, tol=0)
        tries.append(len(stacks))
    # Once before there are stats and once with them: that is another kind of parameter.
    assert tries[-1] == tries[1] <= 2


def test_a_failure_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_of_it() -> list[Tensor]:
        ps = opt.param_lists[0]
        return [t.clone() for p in ps for t in (p, p.grad, *opt.state[p].values())]

    opt = Optimizer(drawn((3, 3), (3, 3)), [sgd_step, reads], lr=0.1)
    for step in range(2):
        give_grads(opt, seed=step)
        take(opt)
    found: list[list[Tensor]] = []
    monkeypatch.setattr(batched, "run_chain", lambda *args: found.append(all_of_it()))
    give_grads(opt, seed=1)
    before = all_of_it()
    take(opt)
    assert len(found) == 1
    assert len(before) == 6
    assert all(map(torch.equal, found[0], before))


def test_what_a_stepper_raises_is_raised_and_not_held_against_it(stacks: list[int]) -> None:
    def refuses(p, lr):
        if lr > 1:
            raise ZeroDivisionError("no")
        p.data.sub_(p.grad.data @ p.grad.data, alpha=lr)

    opt = Optimizer(drawn((3, 3), (3, 3)), refuses, lr=0.5)
    give_grads(opt)
    take(opt)
    opt.set_hyper("lr", 2.0)
    before = [p.detach().clone() for p in opt.param_lists[0]]
    with pytest.raises(ZeroDivisionError, match="no") as caught:
        take(opt)
    assert "stepper refuses" in caught.value.__notes__[0]
    assert all(map(torch.equal, opt.param_lists[0], before))
    opt.set_hyper("lr", 0.5)
    take(opt)
    assert stacks == [2, 2, 2]
    assert believed(opt)


class Remembers:
    """Keeps state of its own, for each parameter, where no engine can see it."""

    def __init__(self) -> None:
        self.kept: dict[Any, Tensor] = {}

    def __call__(self, p: Any, lr: float, age: int = 0) -> Any:
        m = self.kept.get(p, 0) * 0.9 + p.grad.data
        self.kept[p] = m
        p.data.sub_(m @ m.mT, alpha=lr)
        return {"age": age + 1}


def chance(p, lr, age=0):
    p.data.sub_(p.grad.data @ p.grad.data, alpha=lr * random.random())
    return {"age": age + 1}


@pytest.mark.parametrize(("stepper", "tries"), [(Remembers, 2), (lambda: chance, 1)])
def test_a_stack_that_comes_to_something_else_is_not_believed(
    stepper: Callable[[], Any], tries: int, stacks: list[int]
) -> None:
    a, b = (Optimizer(drawn((3, 3), (3, 3)), stepper(), lr=0.1) for _ in range(2))
    for step in range(4):
        give_grads(a, b, seed=step)
        for opt, run in ((a, run_chain), (b, run_batched)):
            random.seed(step)
            take(opt, run)
        same(a, b, tol=0)
    assert stacks == [2] * tries


def test_a_resumed_run_comes_to_the_same() -> None:
    shapes = [(16, 16)] * 3  # so small that a product in a stack rounds in its own way
    whole, again = (Muon(drawn(*shapes, dtype=torch.float32), lr=0.1) for _ in range(2))
    for step in range(8):
        if step == 4:
            for p, q in zip(flat(whole), flat(again), strict=True):
                q.data.copy_(p.data)
            again.load_state_dict(whole.state_dict())
        for opt in (whole, again)[: 1 + (step >= 4)]:
            give_grads(opt, seed=step)
            take(opt)
    same(whole, again, tol=0)
    assert believed(again)


def test_one_matrix_that_fails_sends_the_others_one_by_one() -> None:
    """A stepper that catches decides for each parameter."""

    def whitens(p, lr):
        try:
            root = torch.linalg.cholesky(p.grad.data)
        except torch.linalg.LinAlgError:
            root = torch.eye(2, dtype=p.dtype)
        p.data.sub_(root, alpha=lr)

    opt = Optimizer([nn.Parameter(torch.zeros(2, 2)) for _ in range(2)], whitens, lr=1.0)
    good, bad = opt.param_lists[0]
    for step in range(1, 4):
        good.grad, bad.grad = 4 * torch.eye(2), -torch.eye(2)
        take(opt)
        assert torch.equal(good, -2 * step * torch.eye(2))
        assert torch.equal(bad, -step * torch.eye(2))


def test_shared_memory_goes_one_by_one(stacks: list[int]) -> None:
    room = torch.zeros(10)
    ps = [nn.Parameter(room[:4].view(2, 2)), nn.Parameter(room[3:7].view(2, 2))]
    ps.append(nn.Parameter(torch.zeros(2, 2)))
    opt = Optimizer(ps, sgd_step, lr=1.0)
    for p in ps:
        p.grad = torch.ones(2, 2)
    take(opt)
    assert room.tolist() == [-1, -1, -1, -2, -1, -1, -1, 0, 0, 0]
    one = torch.ones(2, 2)
    for p in ps:
        p.grad = one
    take(opt)
    assert ps[2].tolist() == [[-2, -2], [-2, -2]]
    assert stacks == []


def test_nothing_to_do() -> None:
    run_batched(Optimizer(drawn((2, 2)), sgd_step, lr=0.1)._chains[0], [], {"lr": 1.0}, {}, {})
