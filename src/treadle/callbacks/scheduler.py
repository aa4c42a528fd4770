"""Hyper-parameters that move while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from treadle.errors import UsageError
from treadle.loop.events import Callback
from treadle.schedule import Schedule


class ParamScheduler(Callback):
    """Sets hyper-parameters before each training batch, from the progress of the fit.

    Args:
        scheds: by the name of the hyper-parameter, a function of progress in [0, 1], or a list
            with one function for each parameter group.

    Raises:
        UsageError: when the fit starts, if no stepper of the optimizer names the hyper-parameter.

    >>> from treadle.schedule import SchedCos
    >>> down = ParamScheduler({"lr": SchedCos(0.1, 0.0)})
    """

    order = 60
    run_valid = False

    def __init__(self, scheds: Mapping[str, Schedule | Sequence[Schedule]]) -> None:
        self.scheds = dict(scheds)

    @property
    def name(self) -> str:
        # One for each set of hyper-parameters, so that two may stand side by side.
        return "_".join(["param_scheduler", *sorted(self.scheds)])

    def before_fit(self) -> None:
        unknown = set(self.scheds) - self.opt.hyper_names
        if unknown:
            raise UsageError(
                f"the schedule moves {', '.join(sorted(unknown))}, which no stepper of this "
                f"optimizer names; it has {', '.join(sorted(self.opt.hyper_names))}."
            )
        self._set()

    def before_batch(self) -> None:
        self._set()

    def _set(self) -> None:
        learn = self.learn
        pos = learn.pct_train
        for name, sched in self.scheds.items():
            value = sched(pos) if callable(sched) else [one(pos) for one in sched]
            learn.opt.set_hyper(name, value)
