"""The training loop, its events and callbacks, and the precision it computes in."""

from treadle.loop.events import (
    Callback,
    CancelBackwardException,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidException,
    event,
)
from treadle.loop.memory import OutOfMemoryError
from treadle.loop.precision import Precision
from treadle.loop.signals import Preempted
from treadle.loop.state import preserved
from treadle.loop.training import TrainingLoop

__all__ = [
    "Callback",
    "CancelBackwardException",
    "CancelBatchException",
    "CancelEpochException",
    "CancelFitException",
    "CancelStepException",
    "CancelTrainException",
    "CancelValidException",
    "OutOfMemoryError",
    "Precision",
    "Preempted",
    "TrainingLoop",
    "event",
    "preserved",
]
