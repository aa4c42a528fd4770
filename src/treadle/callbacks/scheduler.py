"""Hyper-parameters that move while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from treadle.errors import UsageError
from treadle.loop.events import Callback
from treadle.schedule import Schedule


class ParamScheduler(Callback):
    """Sets hyper-parameters before each training batch, from the progress of the fit.

    Progress is applied updates over planned updates: a step that is cancelled, or skipped because
    a gradient overflowed, does not move the schedule.

    Args:
        scheds: by the name of the hyper-parameter, a function of progress in [0, 1], or a list
            with one function for each parameter group.

    Raises:
        UsageError: when the fit starts, if no stepper of the optimizer names the hyper-parameter,
            or a list has another length than there are groups.

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
        self._views: list[Any] = []
        self.before_batch()

    def before_batch(self) -> None:
        learn = self.learn
        if self._views is not learn.hypers:  # another optimizer, or other groups
            self._deal(learn.hypers)
        pos = learn.pct_train
        for name, place, views in self._dealt:
            sched = self.scheds[name]
            value = sched(pos) if callable(sched) else sched[place](pos)
            for view in views:
                view[name] = value

    def _deal(self, views: list[Any]) -> None:
        """Find out which of the schedules each group has."""
        self._views = views
        self._dealt: list[tuple[str, int, list[Any]]] = []
        for name, sched in self.scheds.items():
            mine = [view for view in views if name in view.names]
            if callable(sched):
                self._dealt.append((name, 0, mine))
                continue
            # The optimizer knows how a list is dealt out, or what to say of one that is too long.
            self.opt.set_hyper(name, list(range(len(sched))))
            self._dealt += [(name, int(view[name]), [view]) for view in mine]
