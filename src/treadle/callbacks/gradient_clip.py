"""Bound the gradient."""

from __future__ import annotations

from torch.nn.utils import clip_grad_norm_

from treadle.loop.events import Callback


class GradientClip(Callback):
    """Scales the gradients of all parameters down together if their norm is above `max_norm`.

    The norm is that of one vector of all of them (`norm_type` 2.0: Euclidean, `inf`: the greatest
    absolute value), taken before each step, in fp16 of the gradients without their scale
    (arXiv 1211.5063).

    >>> clip = GradientClip(max_norm=0.5)
    """

    order = 11  # after those that only look at the gradients or put the step off

    def __init__(self, max_norm: float = 1.0, norm_type: float = 2.0) -> None:
        self.max_norm, self.norm_type = max_norm, norm_type

    def before_step(self) -> None:
        clip_grad_norm_(self.model.parameters(), self.max_norm, self.norm_type)
