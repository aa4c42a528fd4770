"""What the questions of optimizer.py share: who takes part, where they live, cells of a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common import Report, Sample
from parameter_sets import SETS, ParameterSet
from peers import Side, SideLost, side, sides
from stepping import FROM, MAKE

YARDSTICK = "torch fused"
COMPILERS = ("Treadle", "HeavyBall")
"""Those whose first step fills a cache on disk."""
SLOW = "HeavyBall"
"""The one whose first step may take minutes."""


@dataclass
class Bench:
    """One run of optimizer.py."""

    report: Report
    options: argparse.Namespace
    where: dict[str, str]
    """The interpreter of each library that is not in ours."""
    scratch: Path
    left_out: dict[tuple[str, str], str] = field(default_factory=dict)
    """By contestant and set, why."""
    tried: set[str] = field(default_factory=set)
    """The sets on which `SLOW` has taken its first step."""

    @property
    def sets(self) -> list[ParameterSet]:
        """Those asked for."""
        return [SETS[name] for name in self.options.sets]

    @property
    def contestants(self) -> list[str]:
        """Those that have an interpreter."""
        return [name for name in MAKE if name not in FROM or FROM[name] in self.where]

    def rounds(self, of: ParameterSet, at_most: int = 10**6) -> int:
        """How many: as the command line says, else as is right for the set."""
        return int(self.options.rounds or min(of.rounds, at_most))

    def entrants(self, of: ParameterSet) -> list[str]:
        """Those that have not been left out for `of`. `SLOW` is tried here if it was not before."""
        if SLOW in self.contestants and of.title not in self.tried:
            self.tried.add(of.title)
            self.alone(SLOW, of, "first", self.cache(of))
        return [name for name in self.contestants if (name, of.title) not in self.left_out]

    def cache(self, of: ParameterSet) -> Path:
        """The folder with what `SLOW` has compiled for `of`."""
        return self.scratch / f"{SLOW} {of.title}".replace(" ", "-").replace("/", "-")

    def alone(
        self, name: str, of: ParameterSet, turn: str, cache: Path, **env: str
    ) -> Sample | None:
        """One turn of `stepping.<turn>` in a process of its own; None if it was not to be had.

        Why it was not is noted, and `name` is left out from now on where `of` is concerned.
        """
        python = self.where[FROM[name]] if name in FROM else sys.executable
        try:
            with side(python, **caches(cache), **env) as it:
                if name in FROM:
                    self.report.meet({name: it})
                return it.prepare(
                    f"stepping.{turn}", self.options.limit, contestant=name, shapes=of.shapes
                )()
        except SideLost as lost:
            self.left_out[name, of.title] = str(lost)
            self.report.note(f"{name} was left out on {of.title}: {lost}.")
            return None

    @contextmanager
    def others(self, of: ParameterSet) -> Iterator[dict[str, Side]]:
        """The sides of those that do not live in this process, by contestant."""
        away = {name: self.where[FROM[name]] for name in self.entrants(of) if name in FROM}
        with sides(away, **caches(self.cache(of))) as them:
            self.report.meet(them)
            yield them

    def add(self, contestant: str, of: ParameterSet, measure: str, values: Sequence[float]) -> None:
        """Note what was measured."""
        self.report.add(contestant, f"{of.title}: {measure}", values, digits=5)

    def median(self, contestant: str, of: ParameterSet, measure: str) -> float | None:
        """The median of what was noted, if it was."""
        measured = self.report.results.get(contestant, {}).get(f"{of.title}: {measure}")
        return None if measured is None else measured["median"]

    def cell(self, contestant: str, of: ParameterSet, measure: str) -> str:
        """The median, and behind it its ratio to that of torch fused."""
        value, unit = self.median(contestant, of, measure), self.median(YARDSTICK, of, measure)
        if value is None:
            return "-"
        return figures(value) + (f" ({value / unit:.2f}×)" if unit else "")

    def show(self, title: str, measure: str, names: Sequence[str]) -> None:
        """A table of all sets, a row for each of `names`."""
        rows = [[name, *(self.cell(name, of, measure) for of in self.sets)] for name in names]
        self.report.show([title, *(of.title for of in self.sets)], rows)


def caches(folder: Path) -> dict[str, str]:
    """The environment in which all that compiles keeps its results in `folder`."""
    names = ("TREADLE_HOME", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    return {name: str(folder / name.lower()) for name in names}


def figures(value: float) -> str:
    """Three significant digits, or the whole number.

    >>> [figures(x) for x in (0.01234, 1.5, 123.4, 2485.2)]
    ['0.0123', '1.50', '123', '2,485']
    """
    if value >= 100:
        return f"{value:,.0f}"
    digits = 2 if value >= 1 else 3 if value >= 0.1 else 4
    return f"{value:.{digits if value < 10 else 1}f}"
