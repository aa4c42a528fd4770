"""The optimizer: parameter groups, hyper-parameters and state; the rule is a chain of steppers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from treadle.errors import UsageError, nearest
from treadle.optim.chain import check_chain, check_names, read_chain
from treadle.optim.engine import run_chain
from treadle.optim.groups import (
    BOOKKEEPING,
    Group,
    Hypers,
    check_hyper,
    check_tied,
    label,
    read_group,
    read_groups,
    spread,
)
from treadle.optim.saved import fit_saved


class Optimizer(torch.optim.Optimizer):
    """A torch optimizer whose rule is a chain of steppers.

    Args:
        params: tensors; or (name, tensor) pairs, as from `model.named_parameters()`; or a list of
            lists of either, one a group; or torch's list of dicts, whose further keys are the
            hyper-parameters of that group.
        cbs: a stepper, or (nested) lists of them, run in this order for each parameter. A stepper
            is any callable `f(p, lr, mom, grad_avg=None, **kwargs)`: it gets the parameter and by
            keyword the hyper-parameters, flags and state that it names (all of them if it takes
            **kwargs), changes `p.data` and `p.grad` in place, and may return a dict of new state.
        defaults: values of hyper-parameters: one value, a list with one a group, or a `slice`
            spread over the groups, as in `set_hyper`. They go before what a stepper declares
            (`f.defaults = {"mom": 0.9}`), and that before a number in its signature.

    The chain is checked at once, by running it on a small stand-in parameter; see `chain.py`.

    Raises:
        ChainError: the chain cannot run; the sentence names stepper, argument and mend.
        UsageError: `params` is not one of the above, is empty, or has a tensor twice.

    >>> def average_grad(p, mom, grad_avg=None, **kwargs):
    ...     if grad_avg is None:
    ...         grad_avg = torch.zeros_like(p.grad.data)
    ...     return {"grad_avg": grad_avg * mom + p.grad.data}
    >>> def momentum_step(p, lr, grad_avg, **kwargs):
    ...     p.data.add_(grad_avg, alpha=-lr)
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> opt = Optimizer([w], [average_grad, momentum_step], lr=0.5, mom=0.9)
    >>> w.sum().backward()
    >>> opt.step()
    >>> w.data
    tensor([0.5000, 1.5000])
    >>> opt
    Optimizer: average_grad -> momentum_step
      group 0: 1 parameter (2 values), lr=0.5, mom=0.9
    """

    def __init__(self, params: Any, cbs: Any, **defaults: Any) -> None:
        self._chain = read_chain(cbs)
        self._given: frozenset[str] = frozenset()  # the stats that the chain keeps
        self._gives_known = True
        self._flags: dict[Tensor, dict[str, Any]] = {}
        self.frozen_idx = 0
        groups = read_groups(params)
        check_names(self._chain, defaults, type(self).__name__)
        spreads = {
            name: spread(name, value, len(groups))
            for name, value in {**self._chain.declared, **defaults}.items()
        }
        for i, group in enumerate(groups):
            for name, values in spreads.items():
                group.setdefault(name, values[i])
        # What the groups share is what a group that is added later gets, too.
        shared = {k: v[0] for k, v in spreads.items() if all(x is v[0] or x == v[0] for x in v)}
        super().__init__(groups, shared)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group: a dict with `params` and, as further keys, hyper-parameters.

        Raises UsageError for a tensor that is in another group, ChainError for a key that no
        stepper takes or a hyper-parameter without a value.
        """
        group = read_group(param_group)
        check_tied([*self.param_groups, group])
        if any(("param_names" in group) != ("param_names" in old) for old in self.param_groups):
            raise UsageError("the groups must have names for all parameters or for none.")
        where = f"group {len(self.param_groups)}"
        check_names(self._chain, group.keys() - BOOKKEEPING, where)
        for name, value in self.defaults.items():
            group.setdefault(name, value)
        seen = check_chain(
            self._chain,
            {name: group[name] for name in group.keys() - BOOKKEEPING},
            group["params"],
        )
        self._given |= seen.given.keys()
        self._gives_known &= seen.all_known
        for name, number in self._chain.agreed.items():
            if name not in seen.given:
                group.setdefault(name, number)
        super().add_param_group(group)

    # ---- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of every parameter that is not frozen and has a gradient.

        With a `closure`, call it first, with gradients enabled, and return what it returns.
        Raises UsageError for a sparse gradient, before any parameter has moved.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [self._ready(group) for group in self.param_groups]
        for hypers, params in zip(self.hypers, work, strict=True):
            run_chain(self._chain, params, dict(hypers), self.state, self._flags)
        return loss

    def _ready(self, group: Group) -> list[Tensor]:
        """The parameters of `group` that this step moves."""
        ready = []
        for i, p in enumerate(group["params"]):
            # A plain tensor may carry a gradient put there by hand; a Parameter that requires
            # none is frozen, whatever an earlier backward has left on it.
            if p.grad is None or (isinstance(p, torch.nn.Parameter) and not p.requires_grad):
                continue
            if p.grad.layout is not torch.strided:
                raise UsageError(
                    f"{label(group, i)} has a sparse gradient, and steppers need a dense one; make"
                    " the layer with sparse=False, or use torch.optim.SparseAdam for it."
                )
            ready.append(p)
        return ready

    # ---- hyper-parameters

    @property
    def steppers(self) -> list[Callable[..., Any]]:
        """The chain, as it was given, flat."""
        return [stepper.fn for stepper in self._chain]

    @property
    def hyper_names(self) -> set[str]:
        """The hyper-parameters: what steppers ask for and the chain does not keep as state."""
        return set(self._chain.names - self._given)

    @property
    def hypers(self) -> list[Hypers]:
        """A live view of each group's hyper-parameters that have a value."""
        names = self.hyper_names
        return [Hypers(group, names) for group in self.param_groups]

    def set_hyper(self, name: str, value: Any) -> None:
        """Set one hyper-parameter in all groups.

        `value` is one value; or a list, tuple or 1-d array with one a group; or
        `slice(start, stop)`, spread geometrically from the first group to the last (linearly if an
        end is not positive); or `slice(stop)`: stop for the last group, stop/10 for the others.
        Raises UsageError for a name that no stepper takes, with the nearest that one does.
        """
        check_hyper(name, self.hyper_names)
        for group, v in zip(
            self.param_groups, spread(name, value, len(self.param_groups)), strict=True
        ):
            group[name] = v

    def set_hypers(self, **hypers: Any) -> None:
        """`set_hyper` for each keyword."""
        for name, value in hypers.items():
            self.set_hyper(name, value)

    def set_flags(self, params: Tensor | Iterable[Tensor], **flags: Any) -> None:
        """Override hyper-parameters for single parameters, as in `do_wd=False` for biases.

        `force_train=True` keeps a parameter trainable in a frozen group. Flags stay through
        `clear_state` and are not saved: they belong to the model. Raises UsageError for a
        parameter that is not in this optimizer or a flag that no stepper takes.
        """
        known = {"force_train", *self.hyper_names}
        for name in flags:
            if name not in known:
                raise UsageError(
                    f"no stepper of this optimizer takes a flag {name}; {nearest(name, known)}"
                )
        params = [params] if isinstance(params, Tensor) else list(params)
        mine = {p for group in self.param_groups for p in group["params"]}
        for p in params:
            if p not in mine:
                raise UsageError(
                    f"a tensor of shape {tuple(p.shape)} is not in this optimizer, so it takes no"
                    " flags here; give parameters that the optimizer was built with."
                )
        for p in params:
            self._flags.setdefault(p, {}).update(flags)

    # ---- parameters

    @property
    def param_lists(self) -> list[list[Tensor]]:
        """The parameters, one list a group."""
        return [group["params"] for group in self.param_groups]

    def all_params(
        self, n: slice | int = slice(None), with_grad: bool = False
    ) -> list[tuple[Tensor, Group, dict[str, Any], Hypers]]:
        """(parameter, group, state, hypers) for all parameters of the groups `n`.

        With `with_grad`, only of those that have a gradient.
        """
        pairs = list(zip(self.param_groups, self.hypers, strict=True))
        return [
            (p, group, self.state[p], hypers)
            for group, hypers in (pairs[n] if isinstance(n, slice) else [pairs[n]])
            for p in group["params"]
            if p.grad is not None or not with_grad
        ]

    def freeze_to(self, n: int) -> None:
        """Freeze the groups before `n` and thaw the others; a negative `n` counts from the end.

        A frozen parameter requires no gradient, loses the one it has, and is not stepped; one
        flagged `force_train=True` stays trainable. Raises UsageError if there is no group `n`.
        """
        count = len(self.param_groups)
        if not -count <= n <= count:
            raise UsageError(f"freeze_to({n}) was called, but there are only {count} groups.")
        self.frozen_idx = n % count if n < 0 else n
        for i, params in enumerate(self.param_lists):
            for p in params:
                trains = i >= self.frozen_idx or self._flags.get(p, {}).get("force_train", False)
                p.requires_grad_(bool(trains))
                if not trains:
                    p.grad = None

    def freeze(self) -> None:
        """Freeze all groups but the last. Raises UsageError if there is only one."""
        if len(self.param_groups) == 1:
            raise UsageError(
                "freeze() freezes all groups but the last, and there is only one; build the"
                " optimizer with a list of lists of parameters, one a group."
            )
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Thaw all groups."""
        self.freeze_to(0)

    # ---- state

    def clear_state(self) -> None:
        """Forget what the steppers keep: the next step is as the first. Flags stay."""
        self.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """State and groups in torch's format: plain containers, numbers and tensors.

        Unlike torch's it is a snapshot: the tensors are copies, which later steps do not change.
        """
        saved = copy.deepcopy(super().state_dict())
        saved["state"] = {k: stats for k, stats in saved["state"].items() if stats}
        return saved

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` gave; the tensors are copied.

        Where both sides have parameter names, state is matched by name within a group, else by
        position. Stats keep the dtype that they were saved with and go to the device of their
        parameter. Raises UsageError, before anything is changed, that says what differs: groups,
        parameters, hyper-parameters, or stats that this chain does not keep.
        """
        stat_names = self._given if self._gives_known else None

        def fit(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            return fit_saved(saved, self.param_groups, self.hyper_names, stat_names)

        def unwrap(_: torch.optim.Optimizer) -> None:
            for p, stats in self.state.items():
                self.state[p] = {name: wrapped.unwrap(p) for name, wrapped in stats.items()}

        # As hooks they run after the user's on the way in and before them on the way out.
        handles = [
            self.register_load_state_dict_pre_hook(fit),
            self.register_load_state_dict_post_hook(unwrap, prepend=True),
        ]
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            for handle in handles:
                handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        """All that a copy needs; hooks stay behind, as in torch."""
        mine = ("_chain", "_given", "_gives_known", "_flags", "frozen_idx")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in mine}}

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}: {self._chain}"]
        for i, (params, hypers) in enumerate(zip(self.param_lists, self.hypers, strict=True)):
            size = sum(p.numel() for p in params)
            parts = [f"{len(params)} parameter{'s' * (len(params) != 1)} ({size:,} values)"]
            parts += ["frozen"] * (i < self.frozen_idx)
            parts += [f"{name}={value!r}" for name, value in hypers.items()]
            lines.append(f"  group {i}: {', '.join(parts)}")
        return "\n".join(lines)
