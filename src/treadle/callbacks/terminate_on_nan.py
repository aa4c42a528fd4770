"""Stop before a number that is none reaches the weights, and say where it came from."""

from __future__ import annotations

import math
import warnings

from torch.nn.utils import get_total_norm

from treadle.callbacks.forensic import KeptState, NonFinite, Replayed, replay
from treadle.loop.events import Callback, CancelFitException


class NonFiniteWarning(RuntimeWarning):
    """A loss or a gradient became infinite or not a number, and the fit has ended.

    `warnings.simplefilter("error", NonFiniteWarning)` makes it an exception that leaves `fit`.
    """


class TerminateOnNaNCallback(Callback):
    """Ends the fit at the first training loss or gradient that is infinite or not a number, with a
    `NonFiniteWarning` that says where it came from.

    It looks after each backward pass, so the parameters are those of the last good update; buffers,
    such as the running statistics of batch norm, are put back to what they were before the batch.
    Looking waits for the device once a batch; `opt.guard(skip_nonfinite=True)` does not wait, and
    leaves such steps out instead. Where fp16 scales the loss, overflowing gradients are the
    scaler's daily business and only the loss is looked at.

    To say where the number came from, the batch is run once more on the same random numbers of
    torch, with hooks: the warning names epoch, batch, samples (with a loader of Treadle as indices
    of the data set and as files, too), module and parameter.

    Attributes:
        found: what the warning says, as a `NonFinite`; None as long as all is well.

    >>> stop = TerminateOnNaNCallback()
    """

    order = -9
    reports = True  # a rate sweep is meant to diverge, and ends by its own rule
    found: NonFinite | None = None

    def before_fit(self) -> None:
        self.found, self.replaying = None, False
        self.kept = KeptState(self.model)
        self.learn.add_cb(self.kept)
        self.scope.callback(self.learn.remove_cb, self.kept)

    def after_backward(self) -> None:
        if self.replaying:
            raise Replayed
        loss = self.loss.detach()
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        # A sum of squares might overflow by itself. Scaled gradients may be infinite.
        greatest = get_total_norm(grads, math.inf) if not self._scaled else loss.new_zeros(())
        if not (loss.isfinite() & greatest.isfinite()):  # waits for the device
            gone = not loss.isfinite()
            self._end("the loss" if gone else "a gradient", float(loss if gone else greatest))

    @property
    def _scaled(self) -> bool:
        return bool(self.precision.scaler.is_enabled())

    def _end(self, what: str, value: float) -> None:
        self.replaying = True
        self.found = replay(self.learn, self.kept, self, what, value)
        said = f"{self.found} Training ended before this batch changed the weights."
        if self.found.module is not None:
            said += " A lower learning rate is the usual mend."
        # Each time, not once a place and text as `warn` does: the same fit may be run again.
        warnings.warn_explicit(said, NonFiniteWarning, __file__, 0)
        raise CancelFitException
