"""Losses, hyper-parameters and metrics for MLflow."""

from __future__ import annotations

import re
import time
from typing import Any

from treadle.callbacks.logger import LoggerCallback, Row, imported

_MOST_AT_ONCE = 1000  # metrics that a tracking server takes in one request


class MLflowCallback(LoggerCallback):
    """Logs to the run of MLflow that is active, or to one of its own, which ends with the fit and
    goes on with the next. What is logged when, and under which names: see `LoggerCallback`.

    Where the run is kept is MLflow's to say: `mlflow.set_tracking_uri`, `set_experiment`, or its
    environment variables.

    Args:
        every: how many steps are logged at a time, in one request or a few.
        **start_run: arguments of `mlflow.start_run` for a run of its own: run_name, tags, ...

    Raises:
        UsageError: when a fit starts, if mlflow is not installed.

    >>> log = MLflowCallback(run_name="first try")
    """

    def __init__(self, every: int = 50, **start_run: Any) -> None:
        super().__init__(every)
        self.start_run = start_run

    @property
    def name(self) -> str:
        return "mlflow"

    def open(self) -> None:
        self.mlflow = imported("mlflow", self, "mlflow")
        active = self.mlflow.active_run()
        self.is_own = active is None
        if active is None:
            active = self.mlflow.start_run(**self.start_run)
            self.start_run["run_id"] = active.info.run_id
        self.run_id = active.info.run_id

    def write(self, rows: list[Row]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self.mlflow.entities.Metric(re.sub(r"[^\w./ :-]", "_", name), value, now, step)
            for step, values in rows
            for name, value in values.items()
        ]
        client = self.mlflow.MlflowClient()
        for start in range(0, len(metrics), _MOST_AT_ONCE):
            client.log_batch(self.run_id, metrics[start : start + _MOST_AT_ONCE])

    def close(self, error: BaseException | None) -> None:
        if self.is_own:
            self.mlflow.end_run("FINISHED" if error is None else "FAILED")
