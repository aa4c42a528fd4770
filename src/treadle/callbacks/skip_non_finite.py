"""Train on without the batches that have numbers that are none."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NoReturn

from treadle.callbacks.forensic import NonFinite, NonFiniteCallback, spoilt_weights
from treadle.errors import UsageError
from treadle.loop.events import CancelBatchException
from treadle.loop.state import generators, set_generators


class SkipNonFinite(NonFiniteCallback):
    """Leaves out a batch whose loss or gradient is infinite or not a number, and trains on.

    The fit goes on bit for bit as if that batch had not been there: weights, state of the
    optimizer, averages, buffers and the hidden state of recurrent models, the gradients that are
    gathered for a later step, schedules, and the random numbers of Python, NumPy and torch. Each
    such batch is told by a `NonFiniteWarning` with what `TerminateOnNaNCallback` would say, for
    which it is run once more.

    This is for faults in the data. If the weights themselves are not finite, or more than
    `most_in_a_row` batches one after the other had to be left out, the fit ends.

    Looking waits for the device once a batch. `opt.guard(skip_nonfinite=True)` does not, but
    protects only weights and state of the optimizer, and names nothing.

    Args:
        most_in_a_row: so many batches may be left out one after the other; 0 or more.

    Attributes:
        skipped: what was found in each batch that was left out, as a list of `NonFinite`, with the
            indices and names of its samples.

    Raises:
        NonFiniteError: when the fit ends; the weights are those of the last good update.
        UsageError: if `most_in_a_row` is negative.

    >>> skip = SkipNonFinite(most_in_a_row=5)
    """

    def __init__(self, most_in_a_row: int = 10) -> None:
        if most_in_a_row < 0:
            raise UsageError(f"SkipNonFinite(most_in_a_row={most_in_a_row}): give 0 or more.")
        self.most_in_a_row = most_in_a_row

    def before_fit(self) -> None:
        super().before_fit()
        self.skipped: list[NonFinite] = []
        self.in_a_row = 0

    def before_batch(self) -> None:
        self.begun_with = generators()

    def before_backward(self) -> None:
        if not self.replaying:
            grads = [(p, p.grad) for p in self.params]
            self.gathered = [(p, None if grad is None else grad.clone()) for p, grad in grads]
            self.window_then = copy.copy(self.learn.window)

    def after_batch(self) -> None:
        if self.loss is not None:
            self.in_a_row = 0

    def act(self, found: NonFinite) -> NoReturn:
        self._undo()
        self.skipped.append(found)
        self.in_a_row += 1
        if spoilt_weights(self.model, self.parallel.world):
            self.end(found, "To leave batches out does not mend weights; RollBack does.")
        if self.in_a_row > self.most_in_a_row:
            self.end(found, f"That is {self.in_a_row} batches in a row, so it is not the batch.")
        self.note(found, f"The batch is left out, number {len(self.skipped)} in this fit.")
        raise CancelBatchException

    def _undo(self) -> None:
        """All is as it was before the batch. Buffers are already, after the search."""
        set_generators(self.begun_with)
        for p, grad in self.gathered:
            p.grad = grad
        self.learn.window = self.window_then
        self.learn._gradient_is_in = False  # or what is gathered would be dropped with the batch

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs: what was left out so far."""
        return {"in_a_row": self.in_a_row, "skipped": [asdict(found) for found in self.skipped]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` gave."""
        self.in_a_row = state["in_a_row"]
        self.skipped = [NonFinite(**found) for found in state["skipped"]]
