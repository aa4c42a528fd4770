"""Losses, hyper-parameters and metrics for Weights & Biases."""

from __future__ import annotations

from typing import Any

from treadle.callbacks.logger import LoggerCallback, Row, imported


class WandbCallback(LoggerCallback):
    """Logs to the run of wandb that is active, or starts one. What is logged when, and under which
    names: see `LoggerCallback`; the charts' x axis is `step`.

    The run stays open when a fit ends, for further fits and whatever else belongs to it, until
    `wandb.finish()` or the end of the process.

    Args:
        every: how many steps are logged at a time.
        **init: arguments of `wandb.init` for a run that it starts: project, name, config, mode, ...

    Raises:
        UsageError: when a fit starts, if wandb is not installed.

    >>> log = WandbCallback(project="digits", mode="offline")
    """

    def __init__(self, every: int = 50, **init: Any) -> None:
        super().__init__(every)
        self.init = init

    def open(self) -> None:
        wandb = imported("wandb", self, "wandb")
        self.wandb_run = wandb.run or wandb.init(**self.init)
        # An axis of our own: wandb drops what comes with an earlier step than the last one, and the
        # user's own calls of wandb.log move that.
        for group in ("train/*", "hyper/*", "epoch/*"):
            self.wandb_run.define_metric(group, step_metric="step")

    def write(self, rows: list[Row]) -> None:
        for step, values in rows:
            self.wandb_run.log({"step": step, **values})

    def close(self, error: BaseException | None) -> None:
        pass  # wandb's own process has all rows already, and writes them whatever becomes of ours
