"""A finished or running training as plain data: all that a report needs, and no tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from treadle.errors import UsageError


@dataclass(frozen=True)
class Confusion:
    """How often class i (row) was taken for class j (column), as (classes, classes) counts."""

    vocab: Sequence[str]
    matrix: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        n = len(self.vocab)
        if len(self.matrix) != n or any(len(row) != n for row in self.matrix):
            raise UsageError(
                f"The confusion matrix does not fit its {n} classes; give {n} rows of {n} counts."
            )

    def most_confused(self, min_val: int = 1) -> list[tuple[str, str, int]]:
        """(actual, predicted, n) of each pair taken for one another n >= `min_val` times, most
        frequent first; pairs of equal count in the order of the vocabulary.

        >>> Confusion(["cat", "dog"], [[9, 1], [2, 8]]).most_confused()
        [('dog', 'cat', 2), ('cat', 'dog', 1)]
        """
        pairs = [
            (self.vocab[i], self.vocab[j], n)
            for i, row in enumerate(self.matrix)
            for j, n in enumerate(row)
            if i != j and n >= min_val
        ]
        return sorted(pairs, key=lambda pair: pair[2], reverse=True)


@dataclass(frozen=True)
class ConfusedExample:
    """One sample that the model took for another class.

    `probability` is what the model gave the class it predicted; `image` is a small PNG, or None
    for a sample that cannot be pictured.
    """

    actual: str
    predicted: str
    probability: float
    loss: float
    file_name: str
    image: bytes | None = None


@dataclass(frozen=True)
class RunRecord:
    """A run, as a report tells it.

    `metric_names` heads the columns of `rows`, one row an epoch, "epoch" and "time" included
    ("time" as text, m:ss, or in seconds). `losses` (smoothed), `raw_losses` and each list of
    `hps` hold one number an applied update; `iters` the updates made when each epoch ended.
    `config` and `environment` hold what JSON can. Raises UsageError if a row does not fit.

    >>> record = RunRecord("digits", "2026-01-31T12:00:00", ["epoch", "train_loss", "time"])
    >>> record.rows
    ()
    """

    name: str
    started: str
    metric_names: Sequence[str]
    rows: Sequence[Sequence[object]] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    losses: Sequence[float] = ()
    raw_losses: Sequence[float] = ()
    hps: Mapping[str, Sequence[float]] = field(default_factory=dict)
    iters: Sequence[int] = ()
    confusion: Confusion | None = None
    confused: Sequence[ConfusedExample] = ()

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.metric_names):
                raise UsageError(
                    f"Row {i} of the run {self.name!r} has {len(row)} values for "
                    f"{len(self.metric_names)} names; give one value for each of: "
                    f"{', '.join(self.metric_names)}."
                )

    def column(self, name: str) -> list[object]:
        """The values of one column, epoch by epoch; empty if there is no such column."""
        if name not in self.metric_names:
            return []
        at = list(self.metric_names).index(name)
        return [row[at] for row in self.rows]
