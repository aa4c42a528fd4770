"""Losses, hyper-parameters and metrics for TensorBoard."""

from __future__ import annotations

import os
from datetime import datetime

from treadle.callbacks.logger import LoggerCallback, Row, imported


class TensorBoardCallback(LoggerCallback):
    """Writes event files that `tensorboard --logdir` shows. What is written when, and under which
    names: see `LoggerCallback`.

    Args:
        log_dir: the folder of this run, relative to `learn.path`; by default
            `tensorboard/DATE_TIME`, a new one for each callback.
        every: how many steps are written at a time.

    Raises:
        UsageError: when a fit starts, if tensorboard is not installed.

    >>> board = TensorBoardCallback("tensorboard/first-try")
    """

    def __init__(self, log_dir: str | os.PathLike[str] | None = None, every: int = 50) -> None:
        super().__init__(every)
        self.log_dir = log_dir

    def open(self) -> None:
        writers = imported("torch.utils.tensorboard", self, "tensorboard")
        if self.log_dir is None:
            self.log_dir = f"tensorboard/{datetime.now():%Y-%m-%d_%H-%M-%S.%f}"
        self.writer = writers.SummaryWriter(str(self.path / self.log_dir))

    def write(self, rows: list[Row]) -> None:
        for step, values in rows:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, error: BaseException | None) -> None:
        self.writer.close()
