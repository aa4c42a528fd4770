"""Stop before a number that is none reaches the weights, and say where it came from."""

from __future__ import annotations

from typing import NoReturn

from treadle.callbacks.forensic import NonFinite, NonFiniteCallback
from treadle.loop.events import CancelFitException


class TerminateOnNaNCallback(NonFiniteCallback):
    """Ends the fit at the first training loss or gradient that is infinite or not a number, with a
    `NonFiniteWarning` that says where it came from; or raises that as a `NonFiniteError`.

    It looks after each backward pass, so the parameters are those of the last good update; buffers,
    such as the running statistics of batch norm, are put back to what they were before the batch.
    Looking waits for the device once a batch; `opt.guard(skip_nonfinite=True)` does not wait, and
    leaves such steps out instead. Where fp16 scales the loss, overflowing gradients are the
    scaler's daily business and only the loss is looked at. Weights that are not finite before the
    first batch are named then, and nothing is trained.

    To say where the number came from, the batch is run once more on the same random numbers of
    torch, with hooks: the warning names epoch, batch, samples (with a loader of Treadle as indices
    of the data set and as files, too), module and parameter.

    A validation loss or a metric that is not finite does not end the fit, as it spoils nothing; a
    warning names it.

    `SkipNonFinite` and `RollBack` go on training instead.

    Args:
        error: whether to raise `NonFiniteError` where there would be a warning.

    Attributes:
        found: what was found last, as a `NonFinite`; None as long as all is well.

    >>> stop = TerminateOnNaNCallback()
    """

    def __init__(self, error: bool = False) -> None:
        self.error = error

    def act(self, found: NonFinite) -> NoReturn:
        advice = " A lower learning rate is the usual mend." if found.module is not None else ""
        self.end(found, f"Training ended before this batch changed the weights.{advice}")

    def end(self, found: NonFinite, outcome: str) -> NoReturn:
        if self.error:
            super().end(found, outcome)
        self.note(found, outcome)
        raise CancelFitException

    def note_metric(self, found: NonFinite, outcome: str) -> None:
        if self.error:
            super().end(found, outcome)
        self.note(found, outcome)
