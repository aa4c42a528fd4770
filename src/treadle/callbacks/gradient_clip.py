"""Bound the gradient."""

from __future__ import annotations

from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_

from treadle.loop.events import Callback
from treadle.shards import is_sharded
from treadle.sums import total_norm


class GradientClip(Callback):
    """Scales the gradients of all parameters down together if their norm is above `max_norm`.

    The norm is that of one vector of all of them (`norm_type` 2.0: Euclidean, `inf`: the greatest
    absolute value), taken before each step, in fp16 of the gradients without their scale
    (arXiv 1211.5063). Of gradients that are spread over processes it is the norm of the whole.

    >>> clip = GradientClip(max_norm=0.5)
    """

    order = 11  # after those that only look at the gradients or put the step off

    def __init__(self, max_norm: float = 1.0, norm_type: float = 2.0) -> None:
        self.max_norm, self.norm_type = max_norm, norm_type

    def before_step(self) -> None:
        params = list(self.model.parameters())
        spread = [p for p in params if is_sharded(p)]
        if not spread:
            clip_grad_norm_(params, self.max_norm, self.norm_type)
            return
        # torch's function takes no mixture, and no part that is empty with the norm of order inf.
        norm = total_norm([p.grad for p in params if p.grad is not None], self.norm_type)
        for some in (spread, [p for p in params if not is_sharded(p)]):
            clip_grads_with_norm_(some, self.max_norm, norm)
