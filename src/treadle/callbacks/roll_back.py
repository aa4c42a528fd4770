"""Go back to weights that were good when a number that is none turns up, and train on."""

from __future__ import annotations

import copy
from typing import Any, NoReturn

import torch

from treadle.callbacks.forensic import NonFinite, NonFiniteCallback, spoilt_weights
from treadle.errors import UsageError
from treadle.loop.events import Callback, CancelBatchException
from treadle.loop.state import model_tensors


class RollBack(NonFiniteCallback):
    """When a loss or a gradient is infinite or not a number, puts back what was trained to where it
    was at most `every` updates before, and trains on with the next batch.

    Put back, bit for bit: parameters, buffers, the optimizer's state, and what callbacks declare as
    their state, of all that do not only report, and of `EMACallback` (a class says so by
    `rolls_back = True`); the gradients at hand are dropped. What has happened stays: the place in
    the data, `learn.updates` and with it the schedule, the Recorder, the random numbers, the loss
    scale. Each time a `NonFiniteWarning` says what `TerminateOnNaNCallback` would.

    This is for training that diverges, and for weights that were spoilt. It needs a copy of model
    and optimizer in memory, on their own devices, whether or not checkpoints are written: one on
    the disk may be older by far, and one that is being written is not to be waited for. A fit that
    is resumed goes back at most to where it was resumed.

    Args:
        every: so many updates lie between two copies; 1 or more. A copy is taken only of weights
            that are finite, for which the device is waited for.
        most: so often in a fit; at the next time the fit ends.
        lr_factor: what all learning rates are multiplied by at each time, for the rest of the fit.

    Attributes:
        rolled_back: what was found each time, as a list of `NonFinite`.

    Raises:
        NonFiniteError: when the fit ends; the weights are those that were put back.
        UsageError: if a number is out of its range.

    >>> back = RollBack(every=100, lr_factor=0.5)
    """

    state_names = ("times", "full_lrs", "lowered_lrs")

    def __init__(self, every: int = 50, most: int = 3, lr_factor: float = 1.0) -> None:
        if every < 1 or most < 0 or not 0 < lr_factor <= 1:
            raise UsageError(
                f"RollBack(every={every}, most={most}, lr_factor={lr_factor}): give every of 1 or "
                "more, most of 0 or more, and lr_factor above 0 and up to 1."
            )
        self.every, self.most, self.lr_factor = every, most, lr_factor

    def before_fit(self) -> None:
        super().before_fit()
        self.rolled_back: list[NonFinite] = []
        self.times = 0
        self.full_lrs: list[float] = []
        self.lowered_lrs: list[float] = []
        self.scope.callback(vars(self).pop, "good", None)  # which is as large as the model

    def before_train(self) -> None:
        if "good" not in vars(self):
            self._keep()

    def before_batch(self) -> None:
        window = self.learn.window
        gathering = window is not None and window.samples and not window.closed
        if self.learn.updates - self.good_at >= self.every and not gathering:
            self._keep()

    def after_backward(self) -> None:
        super().after_backward()
        if self.times and self.lr_factor < 1:
            self._lower()

    def act(self, found: NonFinite) -> NoReturn:
        self._put_back()
        self.rolled_back.append(found)
        self.times += 1
        back = f"What was trained is again as it was after update {self.good_at}"
        if self.times > self.most:
            said = f"It happened {self.times} times in this fit; a lower rate is the usual mend."
            self.end(found, f"{back}. {said}")
        self.note(found, f"{back}.")
        raise CancelBatchException

    def _keep(self) -> None:
        if spoilt_weights(self.model, self.parallel.world):  # of which the batch at hand will tell
            return
        self.good: dict[str, Any] = {
            "model": {name: t.detach().clone() for name, t in model_tensors(self.model)},
            "opt": copy.deepcopy(self.opt.state_dict()),
            "callbacks": [(cb, copy.deepcopy(cb.state_dict())) for cb in self._followers()],
        }
        self.good_at = self.learn.updates

    def _followers(self) -> list[Callback]:
        """Those whose state belongs to the weights."""
        return [cb for cb in self.learn.cbs if getattr(type(cb), "rolls_back", not cb.reports)]

    def _put_back(self) -> None:
        hypers = [dict(view) for view in self.opt.hypers]
        with torch.no_grad():
            for name, t in model_tensors(self.model):
                t.copy_(self.good["model"][name])
        self.opt.load_state_dict(copy.deepcopy(self.good["opt"]))  # torch would train the copy on
        for view, then in zip(self.opt.hypers, hypers, strict=True):
            for name, value in then.items():
                view[name] = value
        for cb, state in self.good["callbacks"]:
            cb.load_state_dict(copy.deepcopy(state))

    def _lower(self) -> None:
        views = self.learn.hypers
        now = [view["lr"] for view in views]
        if now != self.lowered_lrs:  # so they have been set anew, by a schedule
            self.full_lrs = now
        self.lowered_lrs = [lr * self.lr_factor**self.times for lr in self.full_lrs]
        for view, lr in zip(views, self.lowered_lrs, strict=True):
            view["lr"] = lr
