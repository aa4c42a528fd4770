"""Schedule-free AdamW: an average of all iterates in place of a schedule. arXiv 2405.15682."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from treadle.errors import UsageError
from treadle.optim.groups import Group
from treadle.optim.optimizer import Optimizer
from treadle.optim.steppers import Param, State, average_sqr_grad, debias, step_stat


def schedule_free_step(
    p: Param,
    lr: float,
    mom: float,
    sqr_mom: float,
    eps: float,
    wd: float,
    step: int,
    sqr_avg: Tensor,
    do_wd: bool = True,
    z: Tensor | None = None,
    lr_max: float = 0.0,
    weight_sum: float = 0.0,
    y: Tensor | None = None,
    **kwargs: Any,
) -> State:
    """u = g/(√v̂ + eps) + wd·p, p ← (1-c)·p + c·z - lr·(1 - mom·(1-c))·u, z ← z - lr·u.

    p is the paper's y, the point between z and the average x at which the gradient is taken:
    arXiv 2405.15682, algorithm 1. c is the weight of this step in that average, w/Σw with w the
    square of the largest lr so far. Keeps `z`, `lr_max` and `weight_sum`.
    """
    if y is not None:
        raise UsageError("the weights are those for evaluation; call opt.train() before a step.")
    z = p.data.clone() if z is None else z
    lr_max = max(lr, lr_max)
    weight_sum = weight_sum + lr_max**2
    c = lr_max**2 / weight_sum if weight_sum > 0 else 0.0
    u = p.grad.data / ((sqr_avg / debias(sqr_mom, 1 - sqr_mom, step)).sqrt() + eps)
    if do_wd and wd != 0:
        u = u.add(p.data, alpha=wd)
    p.data.lerp_(z, c).add_(u, alpha=-lr * (1 - mom * (1 - c)))
    z.sub_(u, alpha=lr)
    return {"z": z, "lr_max": lr_max, "weight_sum": weight_sum}


class ScheduleFreeAdamW(Optimizer):
    """AdamW that needs no schedule: `lr` stays flat, after a warm-up if you like.

    Train on the weights as they are; before you evaluate or save the model call `eval()`, which
    puts the average x in their place, and `train()` before the next step. Leave `mom` where it is:
    x is read off the weights by it. See `schedule_free_step`.

    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> opt = ScheduleFreeAdamW([w], lr=0.1)
    >>> for _ in range(3):
    ...     w.grad = w.data.clone()
    ...     opt.step()
    >>> trained = w.data.clone()
    >>> opt.eval()
    >>> bool(w.data == trained)
    False
    >>> opt.train()
    >>> bool(w.data == trained)
    True
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 2.5e-3,
        mom: float = 0.9,
        sqr_mom: float = 0.999,
        eps: float = 1e-8,
        wd: float = 0.0,
    ) -> None:
        cbs = [average_sqr_grad, step_stat, schedule_free_step]
        super().__init__(params, cbs, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd)

    def add_param_group(self, param_group: Group) -> None:
        """As `Optimizer.add_param_group`."""
        super().add_param_group(param_group)
        self._chains[-1].kept |= {"y"}

    @torch.no_grad()
    def eval(self) -> None:
        """Put the average x in place of the weights, and keep these as the stat `y`.

        Raises UsageError where mom is 0, for then the weights know nothing of the average.
        """
        for p, stats, hypers in self._stepped():
            if hypers["mom"] == 0:
                raise UsageError("mom=0 leaves no average to evaluate; give mom, such as 0.9.")
            if "y" not in stats:
                stats["y"] = p.detach().clone()
                p.lerp_(stats["z"], 1 - 1 / hypers["mom"])  # y = (1 - mom)·z + mom·x

    @torch.no_grad()
    def train(self) -> None:
        """Put back the weights to train on, bit for bit."""
        for p, stats, _ in self._stepped():
            if "y" in stats:
                p.copy_(stats.pop("y"))

    def _stepped(self) -> list[tuple[Tensor, State, Any]]:
        """(parameter, stats, hypers) of all parameters that have taken a step."""
        return [(p, s, hypers) for p, _, s, hypers in self.all_params() if "z" in s]
