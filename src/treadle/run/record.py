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
    """One sample and what the model took it for, mostly another class than its own.

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
class SeenSamples:
    """A few samples of an epoch as the model got them, augmented: small PNGs and their labels."""

    epoch: int
    labels: Sequence[str]
    images: Sequence[bytes]

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.images):
            raise UsageError(
                f"Epoch {self.epoch} has {len(self.images)} images for {len(self.labels)} labels; "
                "give a label for each."
            )


@dataclass(frozen=True)
class ClassBalance:
    """How many samples of each class there are to train and to validate on."""

    vocab: Sequence[str]
    train: Sequence[int]
    valid: Sequence[int]

    def __post_init__(self) -> None:
        if not len(self.vocab) == len(self.train) == len(self.valid):
            raise UsageError(
                f"The class balance has {len(self.vocab)} names, {len(self.train)} and "
                f"{len(self.valid)} counts; give two counts for each name."
            )


@dataclass(frozen=True)
class SlowBatch:
    """One training batch: its epoch, its number within it from 0, and the seconds that it took,
    of which `waiting` passed before the data were there."""

    epoch: int
    batch: int
    seconds: float
    waiting: float


@dataclass(frozen=True)
class BatchTimes:
    """How long `n` training batches took, in seconds: the median, all together, how much of it was
    waiting for data, and the slowest ones, slowest first."""

    n: int
    median: float
    total: float
    waiting: float
    slowest: Sequence[SlowBatch] = ()


@dataclass(frozen=True)
class RunRecord:
    """A run, as a report tells it.

    `metric_names` heads the columns of `rows`, one row an epoch, "epoch" and "time" included
    ("time" as text, m:ss, or in seconds). `losses` (smoothed), `raw_losses` and each list of
    `hps` hold one number an applied update; `iters` the updates made when each epoch ended.
    `config` and `environment` hold what JSON can. `confused` are samples of the most confused pairs
    of classes, `worst` those with the highest losses, `seen` some as the model got them,
    `skipped` the files that could not be read, each with the reason, and `texts` what a language
    model wrote. Raises UsageError if a row
    does not fit.

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
    worst: Sequence[ConfusedExample] = ()
    seen: Sequence[SeenSamples] = ()
    balance: ClassBalance | None = None
    times: BatchTimes | None = None
    skipped: Sequence[tuple[str, str]] = ()
    texts: Sequence[str] = ()

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
