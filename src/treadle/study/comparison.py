"""What a comparison found, as plain data: each run of each row, and what can be said of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from treadle.errors import DataError
from treadle.study.table import html_table, text_table
from treadle.study.verdict import Difference, difference, smaller_is_better, verdict


@dataclass(frozen=True)
class Summary:
    """Mean and spread (sample standard deviation) of `n` values; of one the spread is None.

    >>> print(Summary.of([0.91, 0.92, 0.93]))
    0.9200 ± 0.0100
    >>> print(Summary.of([12.5]))
    12.50
    """

    mean: float
    spread: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """The summary of `values`, of which there is at least one."""
        from statistics import fmean, stdev  # see `difference`

        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        # As many decimals as the mean deserves, and the same for the spread, so that they line up.
        digits = 4 if abs(self.mean) < 10 else 2 if abs(self.mean) < 100 else 0
        spread = "" if self.spread is None else f" ± {self.spread:,.{digits}f}"
        return f"{self.mean:,.{digits}f}{spread}"


@dataclass(frozen=True)
class Run:
    """One training of one row with one seed.

    Attributes:
        seed: what settled the initial weights and the order of the data.
        error: None, or why it did not get to its end: a loss that was not finite, an exception.
            What was recorded until then is kept.
        losses, raw_losses: the training loss at each update, smoothed and as it was.
        seconds: when each update was done, in seconds of training (without validation) since the
            fit began.
        epochs: a dict for each epoch: `epoch` (from 0), a value for each of the comparison's
            `metric_names` (None where there was none), and `seconds`, what it took with its
            validation.
        hypers: each hyper-parameter of the last parameter group by name, one number an update.
        rate_found: the learning rate that the rate finder suggested before the fit, if it was
            asked.
        total_seconds: what the fit took, validation included.
        steps_per_second: updates by second of training.
        initial_weights: a digest of the weights that it began with.
    """

    seed: int
    error: str | None = None
    losses: Sequence[float] = ()
    raw_losses: Sequence[float] = ()
    seconds: Sequence[float] = ()
    epochs: Sequence[Mapping[str, Any]] = ()
    hypers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    rate_found: float | None = None
    total_seconds: float = 0.0
    steps_per_second: float = 0.0
    initial_weights: str = ""

    @property
    def finished(self) -> bool:
        """Whether it trained to its end, with finite losses."""
        return self.error is None

    def value(self, column: str) -> float | None:
        """The last epoch's value of `column`, or the run's own: `total_seconds`,
        `steps_per_second`, `rate_found`. None where there is none, or none that is finite."""
        value: Any = None
        if column in ("total_seconds", "steps_per_second", "rate_found"):
            value = getattr(self, column)
        elif self.epochs:
            value = self.epochs[-1].get(column)
        return float(value) if value is not None and math.isfinite(value) else None

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The run of which `plain` is the `dataclasses.asdict`, also after a way through JSON."""
        return cls(**{name: _numbers(value) for name, value in plain.items()})


@dataclass(frozen=True)
class Row:
    """One contestant: its name, its optimizer and fit as text, and its runs, one a seed.

    `describe` is for people, for example "average_grad -> momentum_step, lr=0.03, mom=0.9;
    fit_one_cycle". Runs that are still to be done are not in `runs`.
    """

    name: str
    describe: str
    runs: Sequence[Run] = ()

    def by_seed(self, column: str) -> dict[int, float]:
        """The value of `column` of each finished run, by its seed."""
        values = {run.seed: run.value(column) for run in self.runs if run.finished}
        return {seed: value for seed, value in values.items() if value is not None}

    def summary(self, column: str) -> Summary | None:
        """Mean and spread of `column` over the finished runs; None if there are none."""
        values = list(self.by_seed(column).values())
        return Summary.of(values) if values else None

    @property
    def failed(self) -> list[Run]:
        """The runs that did not get to their end."""
        return [run for run in self.runs if not run.finished]


@dataclass(frozen=True)
class Comparison:
    """Trainings side by side, that differ in nothing but their row: a table and a verdict.

    Attributes:
        title: what is compared, in a line.
        settings: what all rows share, for people: data, epochs, batch size, ...
        metric_names: the columns by epoch: `train_loss`, `valid_loss`, then the metrics.
        rows: the contestants, in the order in which they were given.
        seeds: all seeds that were asked for.
        environment: what it ran on.
        started: when, as ISO 8601.
    """

    title: str
    settings: Mapping[str, Any]
    metric_names: Sequence[str]
    rows: Sequence[Row]
    seeds: Sequence[int] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""

    @property
    def columns(self) -> list[str]:
        """What the table has: `metric_names`, `total_seconds`, `steps_per_second`, and
        `rate_found` where the rate finder was asked."""
        asked = any(run.rate_found is not None for row in self.rows for run in row.runs)
        found = ["rate_found"] if asked else []
        return [*self.metric_names, "total_seconds", "steps_per_second", *found]

    @property
    def monitor(self) -> str:
        """The column by which rows are judged: the first metric, else the validation loss."""
        names = list(self.metric_names)
        metrics = [name for name in names if name not in ("train_loss", "valid_loss")]
        return (metrics or [name for name in names if name == "valid_loss"] or names)[0]

    @property
    def missing(self) -> int:
        """How many runs are still to be done."""
        return len(self.rows) * len(self.seeds) - sum(len(row.runs) for row in self.rows)

    def __getitem__(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def table(self) -> list[dict[str, Any]]:
        """One dict a row: `name`, and a `Summary` (or None) for each of `columns`."""
        return [
            {"name": row.name, **{column: row.summary(column) for column in self.columns}}
            for row in self.rows
        ]

    def best(self, column: str) -> Row | None:
        """The row with the best mean of `column`; None where there is none, or no better."""
        ranking = self.ranking(column) if column != "rate_found" else []
        return ranking[0] if ranking else None

    def ranking(self, column: str | None = None) -> list[Row]:
        """The rows that finished at least once, best mean of `column` (`monitor`) first."""
        column = column or self.monitor
        sign = 1 if smaller_is_better(column) else -1
        scored = [(s.mean, row) for row in self.rows if (s := row.summary(column)) is not None]
        return [row for _, row in sorted(scored, key=lambda pair: sign * pair[0])]

    def difference(self, a: str, b: str, column: str | None = None) -> Difference | None:
        """What `column` (`monitor`) of row `a` is above that of row `b`, paired seed by seed; None
        if they share no finished seed. See `treadle.study.verdict.Difference`."""
        column = column or self.monitor
        return difference(self[a].by_seed(column), self[b].by_seed(column))

    def verdict(self) -> list[str]:
        """Sentences: which row is best, what it can be told apart from, what failed."""
        return verdict(self)

    def plot(self) -> Any:
        """A figure: loss by updates and by seconds of training, `monitor` by epoch, the rates."""
        from treadle.plots import show
        from treadle.study.figure import figure_of

        return show(figure_of(self))

    def __repr__(self) -> str:
        """The table and the verdict."""
        return text_table(self)

    def _repr_html_(self) -> str:
        return html_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers; `treadle.run.write_json` writes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The comparison of which `plain` is the `to_dict`, also after a way through JSON.

        Raises DataError if `plain` is something else.
        """
        try:
            rows = [
                Row(row["name"], row["describe"], [Run.from_dict(run) for run in row["runs"]])
                for row in plain["rows"]
            ]
            return cls(**{**plain, "rows": rows})
        except (KeyError, TypeError) as error:
            raise DataError(
                f"this is not the record of a comparison ({error!r} is amiss); give the "
                "comparison.json that treadle compare wrote."
            ) from error


def _numbers(value: Any) -> Any:
    """`value` with the numbers that JSON has no word for turned back from text."""
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    return float(value) if value in ("nan", "inf", "-inf") else value
