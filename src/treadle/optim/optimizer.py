"""The optimizer: parameter groups, hyper-parameters and state; the rule is a chain of steppers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from treadle.errors import UsageError, nearest
from treadle.optim.chain import Chain, check_chain, check_names, read_chain, with_lr_mult
from treadle.optim.engine import COMPENSATION, Engine, Guard
from treadle.optim.explain import explain
from treadle.optim.grouped import Grouped
from treadle.optim.groups import (
    BOOKKEEPING,
    Group,
    Hypers,
    check_tied,
    label,
    layer_groups,
    read_group,
    read_groups,
    spread_groups,
)
from treadle.optim.guarded import Guarded
from treadle.optim.saved import fit_saved


class Optimizer(Grouped, Guarded, torch.optim.Optimizer):
    """A torch optimizer whose rule is a chain of steppers.

    Args:
        params: tensors; or (name, tensor) pairs, as from `model.named_parameters()`; or a list of
            lists of either, one a group; or torch's list of dicts, as from `param_rules`. Further
            keys of a dict are hyper-parameters of that group, `cbs`, a chain of its own, and
            `layer_group`, a mark by which neighbours are frozen and spread over as one.
        cbs: a stepper, or (nested) lists of them, run in this order for each parameter. A stepper
            is any callable `f(p, lr, mom, grad_avg=None, **kwargs)`: it gets the parameter and by
            keyword the hyper-parameters, flags and state that it names (all of them if it takes
            **kwargs), changes `p.data` and `p.grad` in place, and may return a dict of new state.
        defaults: values of hyper-parameters: one value, a list with one a group, or a `slice`
            spread over the groups, as in `set_hyper`. They go before what a stepper declares
            (`f.defaults = {"mom": 0.9}`), and that before a number in its signature. A group
            takes those that its chain names. Any chain takes `lr_mult`: its lr is lr·lr_mult.

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

    _engine: Engine | None = None  # made by the first step; what it knows is no part of a copy

    def __init__(self, params: Any, cbs: Any, **defaults: Any) -> None:
        self._chain = read_chain(cbs)
        self._chains: list[Chain] = []  # one a group
        self._flags: dict[Tensor, dict[str, Any]] = {}
        self._guard = Guard()
        self.frozen_idx = 0
        groups = read_groups(params)
        own = [read_chain(group["cbs"]) for group in groups if "cbs" in group]
        known = read_chain([chain.fns for chain in (self._chain, *own)])
        check_names(known, defaults.keys() - {"lr_mult"}, type(self).__name__)
        spreads = {name: spread_groups(name, v, groups) for name, v in defaults.items()}
        for i, group in enumerate(groups):
            chain = self._read_own(group)
            for name, values in spreads.items():
                if name in chain.names or name == "lr_mult":
                    group.setdefault(name, values[i])
        # What the groups share is what a group that is added later gets, too.
        shared = {k: v[0] for k, v in spreads.items() if all(x is v[0] or x == v[0] for x in v)}
        super().__init__(groups, shared)

    def _read_own(self, group: Group) -> Chain:
        """The chain of `group`: its `cbs`, or else that of the optimizer."""
        return read_chain(group["cbs"]) if "cbs" in group else self._chain

    def add_param_group(self, param_group: Group) -> None:
        """Add a group: a dict with `params` and, as further keys, what `Optimizer` takes.

        Raises UsageError for a tensor that is in another group, ChainError for a key that no
        stepper takes or a hyper-parameter without a value.
        """
        group = read_group(param_group)
        check_tied([*self.param_groups, group])
        if any(("param_names" in group) != ("param_names" in old) for old in self.param_groups):
            raise UsageError("the groups must have names for all parameters or for none.")
        chain = self._read_own(group)
        group.pop("cbs", None)
        for name, value in {**chain.declared, **self.defaults}.items():
            if name in chain.names or name == "lr_mult":
                group.setdefault(name, value)
        if "lr_mult" in group and "lr_mult" not in chain.names:
            chain = with_lr_mult(chain)
        chain = next((c for c in (self._chain, *self._chains) if c.fns == chain.fns), chain)
        check_names(chain, group.keys() - BOOKKEEPING, f"group {len(self.param_groups)}")
        seen = check_chain(
            chain,
            {name: group[name] for name in group.keys() - BOOKKEEPING},
            group["params"],
        )
        for name, number in chain.agreed.items():
            if name not in seen.given:
                group.setdefault(name, number)
        super().add_param_group(group)
        for name in self.defaults.keys() - chain.names:  # torch gives every default to every group
            group.pop(name, None)
        chain.kept |= set(seen.given)
        chain.kept_known &= seen.all_known
        self._chains.append(chain)

    # ---- the step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of every parameter that is not frozen and has a gradient.

        With a `closure`, call it first, with gradients enabled, and return what it returns.
        Raises UsageError for a sparse gradient, before any parameter has moved.
        """
        # torch would wrap every step into a call of its hooks and a mark for its profiler, which
        # takes as long as the step of a small model. Here it does so when somebody looks. Where a
        # subclass has a step of its own, torch has wrapped that.
        watched = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch._C._autograd._profiler_enabled()
        )
        if watched and type(self).step is Optimizer.step:
            return _watched_step(self, closure)
        return self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._engine is None:
            self._engine = Engine()
        groups, guard = self.param_groups, self._guard_now()
        self._engine.step(
            groups, self._chains, self._views, self.state, self._flags, self._ready, guard
        )
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a GradScaler may leave it to the step to unscale gradients or do nothing.

        It does then not wait for the device to learn whether one has overflowed.
        """
        return type(self).step is Optimizer.step

    def _views(self) -> list[Hypers]:
        return self.hypers

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; without `set_to_none`, fill them with zeros."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

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
        """The chain of every group that has none of its own, as it was given, flat."""
        return self._chain.fns

    @property
    def chains(self) -> list[list[Callable[..., Any]]]:
        """The steppers of each group."""
        return [chain.fns for chain in self._chains]

    @property
    def hypers(self) -> list[Hypers]:
        """A live view of each group's hyper-parameters that have a value."""
        pairs = zip(self.param_groups, self._chains, strict=True)
        return [Hypers(group, chain.hyper_names) for group, chain in pairs]

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
        self._check_mine(params)
        for p in params:
            self._flags.setdefault(p, {}).update(flags)

    # ---- parameters

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

    # ---- state

    def clear_state(self) -> None:
        """Forget what the steppers keep: the next step is as the first. Flags stay."""
        self.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """State and groups in torch's format: plain containers, numbers and tensors.

        Unlike torch's it is a snapshot: the tensors are copies, which later steps do not change.
        """
        if self._engine is not None:
            self._engine.settle()
        saved = copy.deepcopy(super().state_dict())
        saved["state"] = {k: stats for k, stats in saved["state"].items() if stats}
        return saved

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` gave; the tensors are copied.

        Where both sides have parameter names, state is matched by name within a group, else by
        position. Stats keep the dtype that they were saved with and go to the device of their
        parameter; those of its shape are spread over processes as it is, from whole ones or from
        parts. Raises UsageError, before anything is changed, that says what differs: groups,
        parameters, hyper-parameters, or stats that this chain does not keep.
        """

        def fit(_: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            extra = {COMPENSATION} if self._guard.rounding == "kahan" else set()
            return fit_saved(saved, self.param_groups, self._chains, extra)

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
        mine = ("_chain", "_chains", "_flags", "_guard", "frozen_idx")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in mine}}

    def __repr__(self) -> str:
        """The chain, and a line for each group; the group's own chain, if it has one, below it."""
        shared = any(chain is self._chain for chain in self._chains)
        lines = [f"{type(self).__name__}: {self._chain if shared else 'a chain for each group'}"]
        layers = layer_groups(self.param_groups)
        for i, (group, chain) in enumerate(zip(self.param_groups, self._chains, strict=True)):
            size, count = sum(p.numel() for p in group["params"]), len(group["params"])
            parts = [f"{count} parameter{'s' * (count != 1)} ({size:,} values)"]
            parts += [f"layer group {layers[i]}"] * (1 < layers[-1] + 1 < len(layers))
            parts += ["frozen"] * (layers[i] < self.frozen_idx)
            parts += [f"{name}={value!r}" for name, value in self.hypers[i].items()]
            name = f" ({group['name']})" if "name" in group else ""
            lines.append(f"  group {i}{name}: {', '.join(parts)}")
            lines += [f"    {chain}"] * (chain is not self._chain)
        lines += [f"  {self._guard}"] * (str(self._guard) != "")
        return "\n".join(lines)

    def explain(self, program: bool = False, source: bool = False) -> str:
        """Each chain as mathematics, one line a stepper.

        The formula is the first sentence of the stepper's docstring; where there is none it is the
        stepper's source. With `program` it is followed by what the next step does, as recorded:
        stats and numbers have their names, and a number that was computed by other means than
        + - * / ** has its present value. With `source` it is followed by the code that a kernel
        is compiled from. Nothing is changed, and no gradient is needed.

        >>> from treadle.optim import SGD
        >>> print(SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, mom=0.9).explain(program=True))
        group 0
          weight_decay   p ← (1 - lr·wd)·p, away from the gradient ("decoupled")
          average_grad   m ← mom·m + d·g, with d = 1 - mom if `dampening`, else 1
          momentum_step  p ← p - lr·m, with m from `average_grad`
        <BLANKLINE>
          as recorded for 1 parameter in float32:
          weight_decay   nothing
          average_grad   grad_avg ← mom·grad_avg + g
          momentum_step  p ← p - lr·grad_avg
        """
        of_groups = self.param_groups, self._chains, self.hypers
        return explain(*of_groups, self.state, self._flags, program, source)


_watched_step = torch.optim.Optimizer.profile_hook_step(Optimizer._step)
