"""What happened in training, by update and by epoch."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treadle.interrupts import undivided
from treadle.loop.events import Callback
from treadle.metrics import AvgLoss, Metric, as_metric
from treadle.run.folder import write_history

# So many losses wait one by one on the device; then they become one tensor there.
_CHUNK = 1024

# What a resume needs, when the losses have been read.
_KEPT = "values rows hypers iters _recorded _raw _smooth _average".split()


class Recorder(Callback):
    """Losses, hyper-parameters and metrics of the last fit; on every learner by default.

    There is one entry for each step that was due: for each batch, or for each window of several
    whose gradients are gathered. Of a batch that was cancelled before there is none. Losses stay on
    the device until somebody reads them, so recording never waits for it.

    Attributes:
        metric_names: `["epoch", "train_loss", "valid_loss", ..., "time"]`.
        values: one row an epoch: train loss, valid loss, metrics.
        rows: the same as the table shows them: with the epoch before and the seconds after.
        hypers: for each parameter group, every hyper-parameter by name: a list with a value for
            each step; NaN where there was none.
        iters: how many steps were recorded at the end of each epoch.
        beta: how slowly the smoothed loss moves.
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
        self.hypers: list[dict[str, list[Any]]] = []
        self.iters: list[int] = []
        self._views: list[Any] = []  # of the hyper-parameters that `_columns` takes in
        self._columns: list[tuple[list[Any], Any, str]] = []
        self._recorded = 0
        self._single: list[Tensor] = []
        self._chunks: list[Tensor] = []
        self._raw: list[float] = []
        self._smooth: list[float] = []
        self._average = 0.0
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

    def after_step(self) -> None:
        learn = self.learn
        loss = learn.loss if learn.window is None else learn.window.loss
        self._single.append(loss.detach())
        if len(self._single) == _CHUNK:
            self._stack()
        if self._views is not learn.hypers:  # another optimizer, or other groups
            self._make_columns(learn.hypers)
        self._recorded += 1
        for column, view, name in self._columns:
            column.append(view[name])

    def _make_columns(self, views: list[Any]) -> None:
        """A column for each hyper-parameter; those that were there go on, gaps become NaN."""
        self._views, self._columns = views, []
        for g, view in enumerate(views):
            if g == len(self.hypers):
                self.hypers.append({})
            for name in view:
                column = self.hypers[g].setdefault(name, [])
                column += [float("nan")] * (self._recorded - len(column))
                self._columns.append((column, view, name))

    def after_batch(self) -> None:
        learn = self.learn
        if not learn.training and learn.loss is not None:
            for metric in (self.valid_loss, *self.metrics):
                metric.accumulate(learn)

    def after_validate(self) -> None:
        for metric in (self.valid_loss, *self.metrics):
            metric.share(self.readers)

    def after_epoch(self) -> None:
        trained = self._recorded > (self.iters[-1] if self.iters else 0)
        self.iters.append(self._recorded)
        row = [self.losses[-1] if trained else None, *self.validation_values()]
        self.values.append(row)
        self.rows.append([self.epoch, *row, time.perf_counter() - self.started])
        self.learn.logger(self.rows[-1])
        self._start_epoch()  # of an epoch that is cancelled before it starts nothing is told

    def validation_values(self) -> list[float | None]:
        """The loss and the metrics of the last validation."""
        return [metric.value for metric in (self.valid_loss, *self.metrics)]

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs. Waits for the device."""
        self._read()
        kept = {name: getattr(self, name) for name in _KEPT}
        return {**kept, "seconds": time.perf_counter() - self.started}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` gave, and show the rows of the epochs that are over."""
        shown = len(self.rows)
        for name in _KEPT:
            setattr(self, name, copy.deepcopy(state[name]))
        self._views, self._single, self._chunks = [], [], []
        self.started = time.perf_counter() - state["seconds"]
        for row in self.rows[shown:]:
            self.learn.logger(row)

    # What was recorded, to be read

    @property
    def raw_losses(self) -> list[float]:
        """The loss of each step. Reading it waits for the device."""
        self._read()
        return self._raw

    @property
    def losses(self) -> list[float]:
        """The loss of each step, smoothed: an exponentially weighted average without the bias of
        its start. Reading it waits for the device."""
        self._read()
        return self._smooth

    def _stack(self) -> None:
        if self._single:
            self._chunks.append(torch.stack(self._single))
            self._single = []

    @undivided
    def _read(self) -> None:
        """Fetch the losses that are still on the device, all in one wait."""
        self._stack()
        if not self._chunks:
            return
        new = torch.cat(self._chunks).float().tolist()
        self._chunks = []
        for loss in new:
            self._raw.append(loss)
            self._average = self.beta * self._average + (1 - self.beta) * loss
            self._smooth.append(self._average / (1 - self.beta ** len(self._raw)))

    @property
    def hps(self) -> dict[str, list[Any]]:
        """Every hyper-parameter of the last group by name: a list with a value for each step."""
        return self.hypers[-1] if self.hypers else {}

    @property
    def lrs(self) -> list[float]:
        """The learning rate of the last group at each step."""
        return self.hps.get("lr", [])

    @property
    def history(self) -> list[dict[str, Any]]:
        """The table, a dict for each epoch: ready for `pandas.DataFrame`."""
        return [dict(zip(self.metric_names, row, strict=True)) for row in self.rows]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """What is known of each step, a dict for each: `step`, `epoch`, `loss`, `smooth_loss`, and
        every hyper-parameter; of several groups as `lr_0`, `lr_1`, ... Waits for the device."""
        several = len(self.hypers) > 1
        columns = {
            (f"{name}_{g}" if several else name): column
            for g, hypers in enumerate(self.hypers)
            for name, column in hypers.items()
        }
        rows, epoch = [], 0
        for i, (loss, smooth) in enumerate(zip(self.raw_losses, self.losses, strict=True)):
            while epoch < len(self.iters) and i >= self.iters[epoch]:
                epoch += 1
            known = {"step": i, "epoch": epoch, "loss": loss, "smooth_loss": smooth}
            rows.append(known | {name: c[i] for name, c in columns.items() if i < len(c)})
        return rows

    def to_csv(self, file: str | os.PathLike[str], by: str = "epoch") -> Path:
        """Write `history`, or with `by="step"` `steps`, as CSV; returns the file's path.

        Raises:
            DataError: if the file cannot be written.
        """
        rows = self.steps if by == "step" else self.history
        names = list(dict.fromkeys(name for row in rows for name in row)) or self.metric_names
        return write_history(file, names, [[row.get(name) for name in names] for row in rows])

    def plot_loss(self, skip_start: int = 5, with_valid: bool = True) -> Any:
        """Smoothed training loss by step and validation loss by epoch."""
        from treadle.plots import plot_loss, show

        valid = [row[1] for row in self.values if row[1] is not None] if with_valid else []
        return show(plot_loss(self.losses, self.iters[: len(valid)], valid, skip_start=skip_start))

    def plot_sched(self, keys: Sequence[str] | None = None) -> Any:
        """The hyper-parameters by step: those in `keys`, or all that moved (at least `lr`)."""
        from treadle.plots import plot_sched, show

        moved = [name for name, values in self.hps.items() if len(set(values)) > 1]
        return show(plot_sched(self.hps, keys=keys or moved or ["lr"]))

    def plot_metrics(self) -> Any:
        """The losses and each metric by epoch, a panel each."""
        from treadle.plots import plot_metrics, show

        return show(plot_metrics(self.metric_names, self.rows))
