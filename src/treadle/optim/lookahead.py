"""Lookahead: k steps forward, one step back. arXiv 1907.08610."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from treadle.errors import UsageError
from treadle.optim.optimizer import Optimizer
from treadle.optim.steppers import Param, State


def slow_weights(p: Param, slow: Tensor | None = None, **kwargs: Any) -> State | None:
    """Before the first step of a parameter, keep its values as `slow`, its slow weights."""
    return {"slow": p.data.clone()} if slow is None else None


def lookahead_step(
    p: Param, slow: Tensor, k: int, alpha: float, fast_steps: int = 0, **kwargs: Any
) -> State:
    """Every k steps: slow ← slow + alpha·(p - slow), p ← slow. Keeps `fast_steps`, 0 to k - 1."""
    if fast_steps + 1 < k:
        return {"fast_steps": fast_steps + 1}
    slow.lerp_(p.data, alpha)
    p.data.copy_(slow)
    return {"fast_steps": 0}


class Lookahead(Optimizer):
    """The chain of `opt` between two further steppers, `slow_weights` and `lookahead_step`.

    It takes over the parameters, groups, hyper-parameters, flags and state of `opt`: from then on
    step this optimizer and not that one. The slow weights are stats like any other, so they are
    saved and loaded, and `k` (steps, at least 1) and `alpha` (0 to 1) are hyper-parameters. Each
    parameter counts its own steps, so one unfrozen late looks ahead for k steps of its own.

    Raises UsageError if `opt` is not an `Optimizer` of this library, or has a hyper-parameter named
    k or alpha.

    >>> import torch
    >>> from treadle.optim import SGD
    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> opt = Lookahead(SGD([w], lr=0.1), k=2, alpha=0.5)
    >>> for _ in range(2):
    ...     w.grad = torch.tensor([1.0])
    ...     opt.step()
    >>> w.data  # 1.0 went to 0.8, and half the way back
    tensor([0.9000])
    """

    def __init__(self, opt: Optimizer, k: int = 6, alpha: float = 0.5) -> None:
        if not isinstance(opt, Optimizer):
            raise UsageError(
                f"Lookahead wraps an Optimizer of steppers, and a {type(opt).__name__} was given;"
                " build that with a recipe such as Adam(params, lr)."
            )
        if taken := sorted({"k", "alpha"} & opt.hyper_names):
            raise UsageError(
                f"the wrapped optimizer has a hyper-parameter {taken[0]}, which Lookahead has, too;"
                " rename it in your stepper."
            )
        if k < 1:
            raise UsageError(f"k={k} was given, but Lookahead needs at least one step forward.")
        groups = [
            {**group, "cbs": _ahead(chain)}
            for group, chain in zip(opt.param_groups, opt.chains, strict=True)
        ]
        super().__init__(groups, _ahead(opt.steppers), k=k, alpha=alpha)
        self.state.update(opt.state)
        self._flags.update(opt._flags)
        self.frozen_idx = opt.frozen_idx


def _ahead(chain: list[Callable[..., Any]]) -> list[Callable[..., Any]]:
    return [slow_weights, *chain, lookahead_step]
