"""What happened in training, by batch and by epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from treadle.loop.events import Callback
from treadle.metrics import AvgLoss, Metric, as_metric


class Recorder(Callback):
    """Losses, hyper-parameters and metrics of the last fit; on every learner by default.

    Losses stay on the device until somebody reads them, so recording never waits for it.

    Attributes:
        metric_names: `["epoch", "train_loss", "valid_loss", ..., "time"]`.
        values: one row an epoch: train loss, valid loss, metrics.
        rows: the same as the table shows them: with the epoch before and the seconds after.
        hps: every hyper-parameter of the last group, by name: a list with one value a batch.
        iters: how many batches were recorded at the end of each epoch.
        beta: how slowly the smoothed loss moves.

    A cancelled batch is not recorded.
    """

    order = 50
    reports = True

    def __init__(
        self, metrics: Sequence[Metric | Callable[..., Tensor]] = (), beta: float = 0.98
    ) -> None:
        self.metrics = [as_metric(metric) for metric in metrics]
        self.beta = beta
        self.valid_loss = AvgLoss()
        self._forget()

    def _forget(self) -> None:
        self.values: list[list[float | None]] = []
        self.rows: list[list[Any]] = []
        self.hps: dict[str, list[float]] = {}
        self.iters: list[int] = []
        self._device_losses: list[Tensor] = []
        self._raw: list[float] = []
        self._smooth: list[float] = []
        self._average = 0.0
        self._cancelled = False
        self._start_epoch()

    def _start_epoch(self) -> None:
        self.started = time.perf_counter()
        self.reset_metrics()

    def reset_metrics(self) -> None:
        """Forget what the metrics and the validation loss have seen."""
        for metric in (self.valid_loss, *self.metrics):
            metric.reset()

    @property
    def metric_names(self) -> list[str]:
        """The names of the table's columns."""
        names = [metric.name for metric in self.metrics]
        return ["epoch", "train_loss", "valid_loss", *names, "time"]

    def before_fit(self) -> None:
        self._forget()
        self.learn.logger(self.metric_names)

    def before_epoch(self) -> None:
        self._start_epoch()

    def before_validate(self) -> None:
        self.reset_metrics()

    def before_batch(self) -> None:
        self._cancelled = False

    def after_cancel_batch(self) -> None:
        self._cancelled = True

    def after_batch(self) -> None:
        learn = self.learn
        if self._cancelled or learn.loss is None:
            return
        if learn.training:
            self._device_losses.append(learn.loss.detach())
            for name, value in learn.opt.hypers[-1].items():
                self.hps.setdefault(name, []).append(value)
        else:
            for metric in (self.valid_loss, *self.metrics):
                metric.accumulate(learn)

    def after_epoch(self) -> None:
        trained = len(self.losses) > (self.iters[-1] if self.iters else 0)
        self.iters.append(len(self.losses))
        row = [self.losses[-1] if trained else None, *self.validation_values()]
        self.values.append(row)
        self.rows.append([self.epoch, *row, time.perf_counter() - self.started])
        self.learn.logger(self.rows[-1])
        self._start_epoch()  # of an epoch that is cancelled before it starts nothing is told

    def validation_values(self) -> list[float | None]:
        """The loss and the metrics of the last validation."""
        return [metric.value for metric in (self.valid_loss, *self.metrics)]

    @property
    def raw_losses(self) -> list[float]:
        """The loss of each recorded batch. Reading it waits for the device."""
        self._read()
        return self._raw

    @property
    def losses(self) -> list[float]:
        """The loss of each recorded batch, smoothed: an exponentially weighted average without
        the bias of its start. Reading it waits for the device."""
        self._read()
        return self._smooth

    def _read(self) -> None:
        """Fetch the losses that are still on the device, all in one wait."""
        if not self._device_losses:
            return
        new = torch.stack(self._device_losses).float().tolist()
        self._device_losses = []
        for loss in new:
            self._raw.append(loss)
            self._average = self.beta * self._average + (1 - self.beta) * loss
            self._smooth.append(self._average / (1 - self.beta ** len(self._raw)))

    @property
    def lrs(self) -> list[float]:
        """The learning rate of the last group at each recorded batch."""
        return self.hps.get("lr", [])

    def plot_loss(self, skip_start: int = 5, with_valid: bool = True) -> Any:
        """Smoothed training loss by batch and validation loss by epoch."""
        from treadle.plots import plot_loss, show

        valid = [row[1] for row in self.values if row[1] is not None] if with_valid else []
        return show(plot_loss(self.losses, self.iters[: len(valid)], valid, skip_start=skip_start))

    def plot_sched(self, keys: Sequence[str] | None = None) -> Any:
        """The hyper-parameters by batch: those in `keys`, or all that moved (at least `lr`)."""
        from treadle.plots import plot_sched, show

        moved = [name for name, values in self.hps.items() if len(set(values)) > 1]
        return show(plot_sched(self.hps, keys=keys or moved or ["lr"]))
