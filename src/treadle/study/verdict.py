"""What differences between rows mean: paired over the seeds that they share.

With one seed both rows start from the same weights and see the same batches, so what chance does to
both cancels in the difference. Of `n` differences the mean is given with its 95 % interval by
Student's t, mean ± t · sd / √n (Student, Biometrika 6, 1908); rows are told apart where that
interval leaves out 0. Each pair is judged on its own: among many rows, one pair in twenty that are
alike will seem to differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treadle.callbacks.tracker import natural_comp

if TYPE_CHECKING:
    from treadle.study.comparison import Comparison, Row


def smaller_is_better(column: str) -> bool:
    """Whether a smaller value of `column` is the better one: of losses, errors and times.

    >>> smaller_is_better("valid_loss"), smaller_is_better("accuracy")
    (True, False)
    """
    return column == "total_seconds" or natural_comp(column)(0.0, 1.0)


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, and the 95 % interval of that mean.

    `low` and `high` are None for a single pair, of which nothing is known but itself.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """`a` minus `b` over the keys that both have; None if there are none.

    >>> difference({0: 0.9, 1: 0.8, 2: 0.9}, {0: 0.7, 1: 0.6, 2: 0.6}).told_apart
    True
    >>> difference({0: 0.9, 1: 0.8, 2: 0.9}, {0: 0.8, 1: 0.9, 2: 0.8}).told_apart
    False
    """
    pairs = [a[key] - b[key] for key in a if key in b]
    if not pairs:
        return None
    from statistics import fmean, stdev  # 8 ms, with the decimals that it loads

    mean, n = fmean(pairs), len(pairs)
    if n == 1:
        return Difference(mean, None, None, n)
    half = t_quantile(0.975, n - 1) * stdev(pairs) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)


def t_quantile(p: float, df: int) -> float:
    """Where Student's t with `df` degrees of freedom has the share `p` (0.5 to 0.9999) below it.

    >>> round(t_quantile(0.975, 2), 3), round(t_quantile(0.975, 30), 3)
    (4.303, 2.042)
    """
    low, high = 0.0, 1e5
    for _ in range(100):  # more halvings than a double has bits
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, df) < p else (low, middle)
    return high


def _t_cdf(t: float, df: int) -> float:
    """The share below `t` >= 0: for whole `df` a finite sum in the angle atan(t / √df)
    (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(df))
    cos2 = math.cos(angle) ** 2
    odd = df % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(odd, df - 1, 2):
        total += term
        term *= cos2 * (k + 1) / (k + 2)
    inside = math.sin(angle) * total
    return 0.5 + (0.5 * inside if not odd else (angle + inside) / math.pi)


def verdict(comparison: Comparison) -> list[str]:
    """See `Comparison.verdict`."""
    ranking = comparison.ranking()
    sentences = _best(comparison, ranking) if ranking else ["No run has finished."]
    sentences += [_failure(row) for row in comparison.rows if row.failed]
    if comparison.missing:
        total = len(comparison.rows) * len(comparison.seeds)
        sentences.append(f"{comparison.missing} of {total} runs are still to be done.")
    return sentences


def _best(comparison: Comparison, ranking: list[Row]) -> list[str]:
    best, *others = ranking
    column = comparison.monitor
    summary = best.summary(column)
    assert summary is not None  # it is ranked by it
    said = column.replace("_", " ")
    sentences = [f"{best.name} has the best {said}: {summary} ({_seeds(summary.n)})."]
    found = {row.name: comparison.difference(best.name, row.name) for row in others}
    known = {name: d for name, d in found.items() if d is not None}
    if not known:
        return sentences
    if any(d.n == 1 for d in known.values()):
        word = "With one seed the spread is not known, so it cannot be told apart from the others."
        return [*sentences, word]
    if _seeds_change_nothing(best):
        word = "All its seeds gave the very same losses, so the spread says nothing here."
        return [*sentences, word]
    return [*sentences, *_beside_the_others(known)]


def _beside_the_others(known: Mapping[str, Difference]) -> list[str]:
    """Sentences on the rows by what the best row is ahead of them."""
    same = [name for name, d in known.items() if d.low == d.high == 0]
    alike = [name for name, d in known.items() if not d.told_apart and name not in same]
    apart = [f"{name} ({_interval(d)})" for name, d in known.items() if d.told_apart]
    sentences = []
    if same:
        sentences.append(f"The same values, seed by seed: {listed(same)}.")
    if alike:
        n = min(known[name].n for name in alike)
        closest = f"{alike[0]} ({_interval(known[alike[0]])})"
        sentences.append(
            f"Within the spread: with {_seeds(n)} it cannot be told apart from "
            f"{listed([closest, *alike[1:]])}."
        )
    if apart:
        sentences.append(f"Beyond the spread: it is better than {listed(apart)}.")
    return sentences


def _seeds_change_nothing(row: Row) -> bool:
    finished = [list(run.raw_losses) for run in row.runs if run.finished]
    return len(finished) > 1 and bool(finished[0]) and all(x == finished[0] for x in finished)


def _interval(d: Difference) -> str:
    """The size of a difference, in words that hold whichever direction is the better one."""
    assert d.low is not None and d.high is not None
    low, high = sorted((d.low, d.high)) if d.mean >= 0 else sorted((-d.low, -d.high))
    return f"by {abs(d.mean):.4f}, 95 % interval {low:.4f} to {high:.4f}"


def _failure(row: Row) -> str:
    seeds = listed([str(run.seed) for run in row.failed])
    word = "seeds" if len(row.failed) > 1 else "seed"
    error = str(row.failed[0].error).rstrip(".")
    return f"{row.name} did not get to its end with {word} {seeds}: {error}."


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def listed(words: list[str]) -> str:
    """Words as in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
