"""To torch's optimizers and back: `from_torch`, `to_torch`, and `OptimWrapper` for all others.

from_torch(torch.optim.AdamW)  ->  Optimizer   a chain that goes on where the other stood
to_torch(Optimizer)            ->  torch.optim.AdamW, Adam or SGD, likewise
wrap(any torch optimizer)      ->  OptimWrapper   torch's rule under this library's names
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch

from treadle.errors import UsageError
from treadle.optim.groups import BOOKKEEPING, Group
from treadle.optim.optimizer import Optimizer
from treadle.optim.recipes import adamw_steppers
from treadle.optim.steppers import (
    average_grad,
    l2_reg,
    momentum_step,
    nesterov_step,
    sgd_step,
    weight_decay,
)

Chain = list[Callable[..., Any]]

_ADAM_STATS = {"grad_avg": "exp_avg", "sqr_avg": "exp_avg_sq", "step": "step"}
_SGD_STATS = {"grad_avg": "momentum_buffer"}
_KNOWN = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)


def from_torch(opt: torch.optim.Optimizer) -> Optimizer:
    """The chain that goes on where torch's AdamW, Adam or SGD stands.

    It has the groups, hyper-parameters, parameter names and state of `opt`. The tensors of the
    state are the same ones, so from then on step the new optimizer and not `opt`. To read a file
    that holds the state_dict of a torch optimizer, load it into that optimizer first.

    Raises UsageError for another class, and for `amsgrad`, `maximize`, a `dampening`, which have no
    counterpart here.

    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> from_torch(torch.optim.SGD([w], lr=0.1, momentum=0.9))
    Optimizer: l2_reg -> average_grad -> momentum_step
      group 0: 1 parameter (2 values), lr=0.1, wd=0, mom=0.9
    """
    if type(opt) not in _KNOWN:
        raise UsageError(
            f"from_torch was given a {type(opt).__name__}; it reads torch's AdamW, Adam and SGD."
            " Others run as they are: wrap(opt)."
        )
    is_sgd = isinstance(opt, torch.optim.SGD)
    groups = [_sgd_group(g) if is_sgd else _adam_group(opt, g) for g in opt.param_groups]
    mine = Optimizer(groups, groups[0]["cbs"])
    stats = _SGD_STATS if is_sgd else _ADAM_STATS
    for p, theirs in opt.state.items():
        found = {k: theirs[v] for k, v in stats.items() if theirs.get(v) is not None}
        if "step" in found:
            found["step"] = int(found["step"])  # waits for the device, once
        if found:
            mine.state[p] = found
    return mine


def _sgd_group(group: Group) -> Group:
    _refuse(group, "dampening", "maximize")
    rule = [average_grad, nesterov_step if group["nesterov"] else momentum_step]
    has_mom = group["momentum"] != 0
    mom = {"mom": group["momentum"]} if has_mom else {}
    cbs = [l2_reg, *(rule if has_mom else [sgd_step])]
    return {**_shared(group), **mom, "cbs": cbs}


def _adam_group(opt: torch.optim.Optimizer, group: Group) -> Group:
    _refuse(group, "amsgrad", "maximize")
    decoupled = isinstance(opt, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
    cbs = adamw_steppers if decoupled else [l2_reg, *adamw_steppers[1:]]
    mom, sqr_mom = group["betas"]
    more = {"mom": float(mom), "sqr_mom": float(sqr_mom), "eps": group["eps"]}
    return {**_shared(group), **more, "cbs": cbs}


def _refuse(group: Group, *names: str) -> None:
    for name in names:
        if group.get(name):
            raise UsageError(
                f"the optimizer has {name}={group[name]}, which no stepper here does; run it as it"
                " is with wrap(opt), or write that stepper."
            )


def _shared(group: Group) -> Group:
    kept = {k: v for k, v in group.items() if k in BOOKKEEPING}
    return {**kept, "lr": float(group["lr"]), "wd": group["weight_decay"]}


def to_torch(opt: Optimizer) -> torch.optim.Optimizer:
    """torch's AdamW, Adam or SGD that goes on where `opt` stands: the way back of `from_torch`.

    `lr_mult` goes into the lr of its group, and parameters whose flags differ (`do_wd=False`) get a
    group of their own. The tensors of the state are the same ones.

    Raises UsageError if the chain is none of `SGD` (with the L2 kind of decay), `Adam`, `AdamW`.
    """
    chains = [[inspect.unwrap(fn) for fn in chain] for chain in opt.chains]
    kinds = {_kind(chain, hypers) for chain, hypers in zip(chains, opt.hypers, strict=True)}
    if len(kinds) > 1 or None in kinds:
        raise UsageError(
            "the chain is not that of torch's AdamW, Adam or SGD, so none of torch's optimizers"
            f" goes on with it:\n{opt!r}"
        )
    (kind,) = kinds
    assert kind is not None
    groups = []
    for chain, group, hypers in zip(chains, opt.param_groups, opt.hypers, strict=True):
        kept = {k: v for k, v in group.items() if k in BOOKKEEPING}
        for flags, part in _by_flags(opt, kept):
            groups.append({**part, **_torch_hypers(kind, chain, {**hypers, **flags})})
    make: Any = kind  # the base class that mypy sees takes no lr
    theirs: torch.optim.Optimizer = make(groups, lr=groups[0]["lr"])
    stats = _SGD_STATS if kind is torch.optim.SGD else _ADAM_STATS
    for p, mine in opt.state.items():
        found = {theirs_name: mine[name] for name, theirs_name in stats.items() if name in mine}
        if "step" in found:
            found["step"] = torch.tensor(float(found["step"]))
        if found:
            theirs.state[p] = found
    return theirs


def _kind(chain: Chain, hypers: Mapping[str, Any]) -> type[torch.optim.Optimizer] | None:
    """The class of torch that does what `chain` does."""
    if not set(hypers) <= {"lr", "lr_mult", "wd", "do_wd", "mom", "sqr_mom", "eps"}:
        return None
    decay, *rule = map(_parts, chain)
    if rule == [_parts(fn) for fn in adamw_steppers[1:]]:
        return {weight_decay: torch.optim.AdamW, l2_reg: torch.optim.Adam}.get(decay[0])
    momenta = ([average_grad, momentum_step], [average_grad, nesterov_step], [sgd_step])
    by_rule = rule in [[_parts(fn) for fn in fns] for fns in momenta]
    same_decay = decay[0] is l2_reg or (decay[0] is weight_decay and hypers["wd"] == 0)
    return torch.optim.SGD if by_rule and same_decay else None


def _parts(fn: Any) -> tuple[Any, Any]:
    """A stepper in a form that compares: two partials of the same are not equal."""
    return (fn.func, fn.keywords) if isinstance(fn, partial) else (fn, {})


def _by_flags(opt: Optimizer, group: Group) -> Iterable[tuple[dict[str, Any], Group]]:
    """(flags, group) for parameters of the same flags; those of freezing are left out."""
    found: dict[tuple[Any, ...], tuple[dict[str, Any], Group]] = {}
    for i, p in enumerate(group["params"]):
        flags = {k: v for k, v in opt._flags.get(p, {}).items() if k != "force_train"}
        empty: Group = {key: [] for key in ("params", "param_names") if key in group}
        _, part = found.setdefault(tuple(sorted(flags.items())), (flags, {**group, **empty}))
        for key in empty:
            part[key].append(group[key][i])
    return found.values()


def _torch_hypers(
    kind: type[torch.optim.Optimizer], chain: Chain, hypers: Mapping[str, Any]
) -> dict[str, Any]:
    wd = hypers["wd"] if hypers.get("do_wd", True) else 0.0
    shared = {"lr": hypers["lr"] * hypers.get("lr_mult", 1), "weight_decay": wd}
    if kind is torch.optim.SGD:
        momentum = {"momentum": hypers.get("mom", 0.0), "nesterov": chain[-1] is nesterov_step}
        return {**shared, **momentum}
    return {**shared, "betas": (hypers["mom"], hypers["sqr_mom"]), "eps": hypers["eps"]}
