"""An average of the weights along the way, which is often better than where the way ends."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from treadle.errors import CallbackError, UsageError
from treadle.loop.events import Callback
from treadle.shards import fitted, local, put

Weights = dict[str, Tensor]


class EMACallback(Callback):
    """Keeps an exponential moving average of the weights, validates it, and ends the fit on it.

    After each applied update the average becomes `decay * average + (1 - decay) * weights`, for
    parameters and for floating-point buffers (the running statistics of batch norm). It starts
    from the weights with which the fit starts. Updates that were put off, cancelled or skipped do
    not count; that fp16 skipped one, a GPU tells a step later, and then that step does not count
    instead. What is in half precision is averaged in float32.

    **What the model holds.** While it trains: the trained weights. From the end of an epoch's
    training to the start of the next epoch: the average. So what is validated, what
    `SaveModelCallback` and `learn.save` write after an epoch, and the score beside it belong
    together. When the fit ends, however it ends, the average stays in the model; the trained
    weights are in `raw`, and `learn.model.load_state_dict(learn.ema.raw)` puts them back. The next
    fit goes on from what the model then holds, with a new average. `lr_find` leaves all as it is.

    It takes the memory of one more copy of the weights, of two while the model holds the average.
    The average of a weight that is spread over processes is spread likewise.

    Args:
        decay: the share of the average that an update leaves, from 0 to below 1; about the last
            `1 / (1 - decay)` updates count.
        warmup: whether early updates leave less of it, after `n` of them at most
            `(1 + n) / (10 + n)`: so the weights of the start are soon forgotten, and a short fit
            is served as well.

    Attributes:
        n: the number of updates in the average.
        raw: while the model holds the average, the trained weights as a state dict; else empty.

    Raises:
        UsageError: if `decay` is out of its range.
        CallbackError: when a fit starts whose optimizer keeps an average of its own.

    Source: Polyak and Juditsky, SIAM J. Control Optim. 30 (1992); the warm-up is that of
    `tf.train.ExponentialMovingAverage`.

    >>> ema = EMACallback(decay=0.99)
    """

    order = -5  # puts the weights in place before others read or change them
    run_valid = False
    reports = True  # a rate sweep is judged by its training loss, where an average has no part
    rolls_back = True  # with the weights

    def __init__(self, decay: float = 0.999, warmup: bool = True) -> None:
        self.decay, self.warmup = _checked_decay(decay), warmup
        self.n, self.average, self.raw = 0, Weights(), Weights()

    def before_fit(self) -> None:
        _check_no_other_average(self.opt)
        if not self.average:  # else a state was loaded, to go on with
            self.n, self.raw = 0, {}
        self.updates_seen = self.learn.updates
        self.scope.callback(self._finish)

    def before_epoch(self) -> None:
        self.live = _weights(self.model)
        _put(self.raw, self.live)
        self.raw = {}
        self.average = _begun(self.average, self.live)
        self.updates_seen = self.learn.updates

    def after_batch(self) -> None:
        if self.learn.updates > self.updates_seen:
            self.n += 1
            most = (1 + self.n) / (10 + self.n) if self.warmup else 1.0
            _move(self.average, self.live, min(self.decay, most))
        self.updates_seen = self.learn.updates

    def after_train(self) -> None:
        self.after_batch()  # the gradients gathered last may be stepped with after the last batch
        if self.average and not self.raw:
            self.raw = copy.deepcopy(self.model.state_dict())
            _put(self.average, _weights(self.model))

    after_cancel_epoch = after_fit = after_train  # wherever else training may end

    def _finish(self) -> None:
        self.after_train()
        self.average = {}

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs: `n`, `average` and `raw`, the tensors copied."""
        return copy.deepcopy({"n": self.n, "average": self.average, "raw": self.raw})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, in the fit at hand or else in the next.

        Raises:
            UsageError: if it is the average of another model.
        """
        live = _weights(self.model)
        _check_same_names(state["average"], live)
        self.n, self.updates_seen = state["n"], self.learn.updates
        self.average = {k: fitted(t, live[k]) for k, t in state["average"].items()}
        self.raw = copy.deepcopy(state["raw"])


def _weights(model: nn.Module) -> Weights:
    """What of the model's state dict can be averaged: the tensors themselves, not copies."""
    weights = model.state_dict(keep_vars=True).items()
    return {k: t for k, t in weights if isinstance(t, Tensor) and t.is_floating_point()}


def _begun(average: Weights, live: Weights) -> Weights:
    """The average of each weight on the weight's device; of a new one, the weight as it is."""
    return {
        k: average[k].to(t.device)
        if k in average
        else t.detach().to(torch.promote_types(t.dtype, torch.float32), copy=True)
        for k, t in live.items()
    }


@torch.no_grad()
def _move(average: Weights, live: Weights, decay: float) -> None:
    averages = list(map(local, average.values()))
    weights = [local(t).to(a.dtype) for a, t in zip(averages, live.values(), strict=True)]
    torch._foreach_lerp_(averages, weights, 1 - decay)


@torch.no_grad()
def _put(values: Weights, into: Weights) -> None:
    for k in values.keys() & into.keys():
        put(into[k], values[k])


def _checked_decay(decay: float) -> float:
    if not 0 <= decay < 1:
        raise UsageError(
            f"EMACallback(decay={decay}): this is the share of the average that each update "
            "leaves; give a number from 0 to below 1, such as 0.999."
        )
    return decay


def _check_no_other_average(opt: Any) -> None:
    if hasattr(opt, "eval"):
        raise CallbackError(
            "EMACallback averages the weights, and so does this optimizer, whose eval() puts its "
            "own average in place; take EMACallback away, or choose another optimizer."
        )


def _check_same_names(average: Weights, live: Weights) -> None:
    differ = sorted(average.keys() ^ live.keys()) if average else []
    if differ:
        raise UsageError(
            f"this average is of another model: {', '.join(differ[:5])} is not in both; build the "
            "model that was trained."
        )
