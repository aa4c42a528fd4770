"""Gather from a learner what a report tells."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from treadle.report.interpret import ClassificationInterpretation
from treadle.run.folder import environment
from treadle.run.record import RunRecord


def collect(
    learn: Any,
    name: str,
    config: Mapping[str, object] | None = None,
    started: datetime | None = None,
) -> RunRecord:
    """The record of the last fit of `learn`, with what it confuses in the validation set.

    Args:
        learn: a classifier that was fitted.
        name: what to call the run.
        config: what to show as its configuration.
        started: when it began; now, by default.
    """
    recorder = learn.recorder
    interpretation = ClassificationInterpretation.from_learner(learn)
    return RunRecord(
        name=name,
        started=(started or datetime.now()).isoformat(timespec="seconds"),
        metric_names=recorder.metric_names,
        rows=recorder.rows,
        config=config or {},
        environment=environment(learn.device),
        losses=recorder.losses,
        raw_losses=recorder.raw_losses,
        hps=recorder.hps,
        iters=recorder.iters,
        confusion=interpretation.confusion(),
        confused=interpretation.confused_examples(),
    )
