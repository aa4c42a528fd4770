"""Any torch optimizer under this library's names, so that learners and schedules can drive it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from treadle.errors import UsageError, nearest
from treadle.optim.grouped import Grouped
from treadle.optim.groups import (
    BOOKKEEPING,
    Group,
    Hypers,
    check_hyper,
    layer_groups,
    read_groups,
    spread_groups,
)
from treadle.optim.optimizer import Optimizer

# Our name -> torch's key in the group, and the place in the value if that is a tuple.
Place = tuple[str, int | None]


class TorchHypers(Hypers):
    """A live view of the hyper-parameters of one group of a torch optimizer, under our names."""

    def __init__(self, group: Group, places: Mapping[str, Place]) -> None:
        super().__init__(group, places.keys())
        self._places = places

    def __getitem__(self, name: str) -> Any:
        key, i = self._places[name]
        value = self._group[key] if i is None else self._group[key][i]
        return value.item() if isinstance(value, Tensor) else value

    def __setitem__(self, name: str, value: Any) -> None:
        check_hyper(name, self.names)
        key, i = self._places[name]
        old = self._group[key]
        if i is not None:
            value = tuple(value if j == i else v for j, v in enumerate(old))
        if isinstance(old, Tensor):  # a compiled step holds on to this very tensor
            old.fill_(value)
        else:
            self._group[key] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)


class OptimWrapper(Grouped):
    """A torch optimizer with the face of `Optimizer`: `hypers`, `set_hyper`, `freeze_to`, ...

    Args:
        params: as for `Optimizer`, with the names here or torch's for the hyper-parameters of a
            group, but without chains and `lr_mult`; or None, if `opt` is an optimizer.
        opt: a class of optimizers, or what makes one from groups and `kwargs`; or an optimizer.
        kwargs: for `opt`, under torch's names; `lr` may be a list or a slice, one value a group.

    The names are `lr`, `mom` (torch's momentum, betas[0]), `sqr_mom` (betas[1], RMSprop's alpha),
    `wd` (weight_decay) and `eps`, as far as the optimizer has them; a momentum of 0 is none. The
    wrapped optimizer is `.opt`: give that one to torch's schedulers.

    Raises UsageError for what is no torch optimizer, and for a hyper-parameter of a group that it
    does not have.

    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> opt = OptimWrapper([w], opt=torch.optim.AdamW, lr=0.1)
    >>> opt.set_hypers(mom=0.8, wd=0.5)
    >>> opt.hypers
    [{'lr': 0.1, 'mom': 0.8, 'sqr_mom': 0.999, 'wd': 0.5, 'eps': 1e-08}]
    """

    def __init__(self, params: Any = None, opt: Any = None, **kwargs: Any) -> None:
        self._flags: dict[Tensor, dict[str, Any]] = {}
        self.frozen_idx = 0
        if params is not None and callable(opt):
            groups = read_groups(params)
            for name in [k for k, v in kwargs.items() if k == "lr" or isinstance(v, slice)]:
                values = spread_groups(name, kwargs[name], groups)
                for group, value in zip(groups, values, strict=True):
                    group.setdefault(name, value)
                kwargs[name] = values[-1]
            opt = opt(groups, **kwargs)
        if not isinstance(opt, torch.optim.Optimizer) or isinstance(opt, Optimizer):
            raise UsageError(
                f"OptimWrapper needs a torch optimizer, and a {type(opt).__name__} was given; give"
                " (params, opt=torch.optim.AdamW, lr=...) or (opt=an optimizer of torch)."
            )
        self.opt = opt
        for group in self.param_groups:
            self._translate(group)

    def _translate(self, group: Group) -> None:
        """Set under torch's names what `group` has under ours, as rules give it; torch itself
        would pass over it in silence. Raises UsageError for what torch does not have."""
        if not group.get("do_wd", True):
            group["weight_decay"] = 0.0
        places = self._places(group)
        ours = group.keys() - self.opt.defaults.keys() - BOOKKEEPING - {"do_wd"}
        for name in ours & places.keys():
            TorchHypers(group, places)[name] = group.pop(name)
        for name in sorted(ours - places.keys()):
            raise UsageError(
                f"a group was given {name}, which {type(self.opt).__name__} does not have;"
                f" {nearest(name, {*places, *self.opt.defaults})}"
            )

    @property
    def param_groups(self) -> list[Group]:
        """torch's own list of groups."""
        return self.opt.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[Group]) -> None:
        self.opt.param_groups = groups

    @property
    def state(self) -> Any:
        """torch's own state: parameter -> stats."""
        return self.opt.state

    @property
    def hypers(self) -> list[Hypers]:
        """A live view of each group's hyper-parameters, under our names."""
        return [TorchHypers(group, self._places(group)) for group in self.param_groups]

    @property
    def hyper_names(self) -> set[str]:
        """Our names of the hyper-parameters, and `do_wd`, a flag, where there is a weight decay."""
        flags = {"do_wd"} if any("weight_decay" in group for group in self.param_groups) else set()
        return super().hyper_names | flags

    def _places(self, group: Group) -> dict[str, Place]:
        places: dict[str, Place] = {"lr": ("lr", None)}
        betas = group.get("betas")
        if isinstance(betas, tuple | list):
            places |= {"mom": ("betas", 0), "sqr_mom": ("betas", 1)}
        if group.get("momentum"):
            places["mom"] = ("momentum", None)
        if isinstance(self.opt, torch.optim.RMSprop):
            places["sqr_mom"] = ("alpha", None)
        if "weight_decay" in group and group.get("do_wd", True):
            places["wd"] = ("weight_decay", None)
        if isinstance(group.get("eps"), float | int):
            places["eps"] = ("eps", None)
        return places

    def set_flags(self, params: Tensor | list[Tensor], **flags: Any) -> None:
        """`force_train=True`, as for `Optimizer`, and `do_wd=False`, for which the parameters move
        to a group of their own, without weight decay, of the same layer group.

        Raises UsageError for any other flag: torch has no hyper-parameters for one parameter.
        """
        known = {"force_train", *({"do_wd"} & self.hyper_names)}
        for name in flags:
            if name not in known:
                raise UsageError(
                    f"{type(self.opt).__name__} takes no flag {name}, for in torch a parameter has"
                    f" the hyper-parameters of its group; {nearest(name, known)}"
                )
        params = [params] if isinstance(params, Tensor) else list(params)
        self._check_mine(params)
        for p in params:
            self._flags.setdefault(p, {}).update(flags)
        if "do_wd" in flags:
            self._regroup()

    def _regroup(self) -> None:
        """Cut every group that has both decaying and spared parameters."""
        regrouped: list[Group] = []
        for layer, group in zip(layer_groups(self.param_groups), self.param_groups, strict=True):
            group["layer_group"] = layer
            spared = [not self._flags.get(p, {}).get("do_wd", True) for p in group["params"]]
            was_spared = not group.get("do_wd", True)
            if any(s != was_spared for s in spared) and was_spared:
                raise UsageError("weight decay was taken from a parameter before; it stays so.")
            if not any(spared) or was_spared:
                regrouped.append(group)
                continue
            rest = _only(group, [not s for s in spared])
            other = {**_only(group, spared), "do_wd": False, "weight_decay": 0.0}
            regrouped += [g for g in (rest, other) if g["params"]]
        self.param_groups[:] = regrouped

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """torch's step."""
        return self.opt.step() if closure is None else self.opt.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """torch's zero_grad."""
        self.opt.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: Group) -> None:
        """torch's add_param_group."""
        self.opt.add_param_group(param_group)
        self._translate(self.param_groups[-1])

    def clear_state(self) -> None:
        """Forget the state: the next step is as the first."""
        self.opt.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """torch's state_dict."""
        return self.opt.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """torch's load_state_dict."""
        self.opt.load_state_dict(dict(state_dict))

    def __repr__(self) -> str:
        return f"OptimWrapper of {self.opt!r}"


def _only(group: Group, chosen: list[bool]) -> Group:
    """`group` with the chosen ones of its parameters, and of their names."""
    kept = dict(group)
    for key in {"params", "param_names"} & group.keys():
        kept[key] = [x for x, yes in zip(group[key], chosen, strict=True) if yes]
    return kept


def wrap(opt: Any) -> Optimizer | OptimWrapper:
    """`opt` with the face that learners and schedules need: itself, or an `OptimWrapper` of it.

    Raises UsageError for what is no optimizer.
    """
    return opt if isinstance(opt, Optimizer | OptimWrapper) else OptimWrapper(opt=opt)


def make_opt(opt_func: Callable[..., Any], params: Any, **kwargs: Any) -> Optimizer | OptimWrapper:
    """What `opt_func(params, **kwargs)` makes, with the face that learners and schedules need.

    `opt_func` may be a recipe, a class of torch's, a `partial` of either, or any function that
    gives an optimizer. `params` are as for `Optimizer`: what is torch's own gets them in its form.
    """
    inner: Any = opt_func
    while isinstance(inner, partial):
        inner = inner.func
    is_torchs = isinstance(inner, type) and issubclass(inner, torch.optim.Optimizer)
    if is_torchs and not issubclass(inner, Optimizer):
        return OptimWrapper(params, opt_func, **kwargs)
    return wrap(opt_func(params, **kwargs))
