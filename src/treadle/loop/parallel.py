"""How the processes of a run share its work: a strategy of the loop, as precision is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from treadle.loop.window import samples_in
from treadle.world import World

if TYPE_CHECKING:
    from treadle.loop.listeners import Listeners
    from treadle.loop.training import TrainingLoop


class Parallel:
    """One process, which does all of it: every step of the loop is as it stands there.

    With several (`treadle.distributed`), the loop on each of them trains on its part of each
    batch, so that together they take the step that one would take with the whole of it.
    """

    name = "none"
    world = World()

    def alone(self) -> Parallel:
        """The strategy for a validation of data that this process reads whole, and perhaps it
        alone: nobody may have to be waited for."""
        return self

    def spread(self, loop: TrainingLoop) -> None:
        """Put the model where this strategy wants it, before there is an optimizer for it."""

    def settle(self, loop: TrainingLoop) -> None:
        """Before a fit or a validation: model and listeners of all processes are as they start."""

    def batches(
        self, loop: TrainingLoop, batches: Iterable[Any], first: int
    ) -> Iterable[tuple[int, Any]]:
        """The batches of a pass that this process is to hear of, numbered from `first`."""
        return enumerate(batches, first)

    def model(self, loop: TrainingLoop) -> Callable[..., Any]:
        """What to call in place of the model."""
        return loop.model

    def joint(self, loop: TrainingLoop, loss: Any) -> Any:
        """The loss of the whole batch, given that of this process's part."""
        return loss

    def samples(self, loop: TrainingLoop) -> int:
        """How many samples the whole batch has."""
        return samples_in(loop.yb)

    def backward(self, loop: TrainingLoop, loss: Tensor) -> None:
        """Make the gradients of the whole batch, given the loss of this process's part."""
        loop.precision.backward(loss)

    def before_step(self, loop: TrainingLoop) -> None:
        """Make sure that the gradients are those of all processes."""

    def agree(self, loop: Listeners, event: str) -> None:
        """Fire an event; what one process cancels, all do."""
        loop(event, agree=False)

    def scope(self, loop: TrainingLoop) -> AbstractContextManager[object]:
        """What holds while a fit or a validation lasts."""
        return nullcontext()
