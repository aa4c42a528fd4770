"""One run of a comparison: a fresh learner, its fit, and what was recorded."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treadle.errors import TreadleError, UsageError
from treadle.study.clock import Clock, Follow, Glimpse, StopWhereDiverged
from treadle.study.comparison import Run
from treadle.study.contestants import Contestant
from treadle.study.seeding import rewind, seed_all

Tell = Callable[[int, int], None]
"""Is told how many updates are done, and in which epoch."""


def fresh(make_learner: Callable[[], Any], seed: int) -> Any:
    """A learner as it begins with `seed`."""
    seed_all(seed)
    learn = make_learner()
    if not hasattr(learn, "recorder"):
        raise UsageError(
            f"make_learner gave {type(learn).__name__} without a recorder; it must return a "
            "Learner with its default callbacks."
        )
    rewind(learn.dls, seed)
    return learn


@dataclass
class Training:
    """The training of a contestant with a seed.

    `raised` is what its fit raised, if it did. That is a result too; but one that may be of the
    machine and not of the row, so a later call tries again.
    """

    contestant: Contestant
    epochs: int
    finds_its_rate: bool
    seed: int
    raised: Exception | None = None

    def glimpse(self, learn: Any) -> None:
        """Two updates of a learner that is thrown away: what is compiled, allocated or read from
        the disk at a row's first steps is not put down to its first run."""
        reports = [cb for cb in learn.cbs if cb.reports]
        try:
            self.contestant.dress(learn)
            with learn.removed_cbs(reports), learn.no_logging(), learn.added_cbs(Glimpse()):
                self.contestant.train(learn, 1, learn.lr)
        except Exception:  # noqa: S110 - the run itself will raise it again, and keep the reason
            pass

    def run(self, learn: Any, tell: Tell | None, initial_weights: str) -> Run:
        """Train `learn`, which is fresh."""
        clock, stop = Clock(), StopWhereDiverged()
        cbs = [clock, stop] if tell is None else [clock, stop, Follow(tell)]
        rate, began = None, time.perf_counter()
        try:
            self.contestant.dress(learn)
            if self.finds_its_rate:
                rate = float(learn.lr_find(show_plot=False, strict=True).valley)
            seed_all(self.seed)  # whatever the optimizer and the finder drew, the fits draw alike
            rewind(learn.dls, self.seed)
            began = time.perf_counter()
            with learn.no_logging(), learn.added_cbs(cbs):
                self.contestant.train(learn, self.epochs, learn.lr if rate is None else rate)
        except Exception as error:
            self.raised = error
        return Run(
            seed=self.seed,
            error=stop.why if self.raised is None else sentence(self.raised),
            rate_found=rate,
            total_seconds=time.perf_counter() - began,
            initial_weights=initial_weights,
            **_recorded(learn.recorder, clock),
        )


def _recorded(recorder: Any, clock: Clock) -> dict[str, Any]:
    """What the recorder and the clock have, of as many updates as both have seen."""
    clock.settle()
    n = len(clock.seconds)
    if n == 0:  # the fit did not get so far, and the recorder may not have begun
        return {}
    names = [*recorder.metric_names[:-1], "seconds"]
    return {
        "losses": list(recorder.losses[:n]),
        "raw_losses": list(recorder.raw_losses[:n]),
        "seconds": clock.seconds,
        "epochs": [dict(zip(names, row, strict=True)) for row in recorder.rows],
        "hypers": {name: list(map(float, column[:n])) for name, column in recorder.hps.items()},
        "steps_per_second": n / clock.trained,
    }


def sentence(error: Exception) -> str:
    """What was raised, in a line; and where, if that is in the code of whoever compares."""
    text = " ".join(str(error).split())
    text = text if isinstance(error, TreadleError) else f"{type(error).__name__}: {text}"
    ours = str(Path(__file__).parents[1])
    theirs = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((ours, "<")) and "-packages" not in frame.filename
    ]
    return f"{text} ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else text
