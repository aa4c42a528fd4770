"""What needs a fresh process of optimizer.py's contestants: the first step, and the peak memory."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from bench import COMPILERS, SLOW, YARDSTICK, Bench
from common import Sample
from parameter_sets import ParameterSet

FRESH = {"Treadle": 3, YARDSTICK: 3}  # processes, each with an empty cache; one of the others
FIXED_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
MEASURES = {
    "cold": "first step, empty cache, ms",
    "warm": "first step, filled cache, ms",
}


def first_step(bench: Bench) -> None:
    """How long until the first step is done?"""
    for of in bench.sets:
        for name in bench.contestants:
            _note(bench, name, of, _fresh(bench, name, of))
    bench.show(MEASURES["cold"], MEASURES["cold"], bench.contestants)
    names = [name for name in COMPILERS if name in bench.contestants]
    bench.show(MEASURES["warm"], MEASURES["warm"], names)


def _fresh(bench: Bench, name: str, of: ParameterSet) -> list[dict[str, Sample]]:
    """In each process the samples "cold" and, with the same cache, "warm"."""
    if name == SLOW:
        bench.tried.add(of.title)
        taken = [_pair(bench, name, of, bench.cache(of))]
    else:
        taken = []
        for _ in range(1 if bench.options.quick else FRESH.get(name, 1)):
            with TemporaryDirectory(dir=bench.scratch) as folder:
                taken.append(_pair(bench, name, of, Path(folder)))
    return [pair for pair in taken if pair]


def _pair(bench: Bench, name: str, of: ParameterSet, cache: Path) -> dict[str, Sample]:
    kinds = ("cold", "warm") if name in COMPILERS else ("cold",)
    pair = {}
    for kind in kinds:
        sample = bench.alone(name, of, "first", cache)
        if sample is None:
            break
        pair[kind] = sample
    return pair


def _note(bench: Bench, name: str, of: ParameterSet, taken: list[dict[str, Sample]]) -> None:
    for kind in ("cold", "warm"):
        if values := [pair[kind]["ms"] for pair in taken if kind in pair]:
            bench.add(name, of, MEASURES[kind], values)


def extra_memory(bench: Bench) -> None:
    """How much memory does a step need beyond parameters, gradients and state?"""
    if not Path("/proc/self/clear_refs").exists():
        bench.report.note("Peak memory was left out: it takes Linux.")
        return
    large = [of for of in bench.sets if of.large]
    for of in large:
        for name in bench.entrants(of):
            sample = bench.alone(name, of, "extra_memory", bench.cache(of), **FIXED_MALLOC)
            if sample is not None:
                bench.add(name, of, "extra memory, %", [sample["%"]])
    rows = [[name, *(_percent(bench, name, of) for of in large)] for name in bench.contestants]
    if large:
        header = ["peak extra memory of a step, % of the parameters", *(of.title for of in large)]
        bench.report.show(header, rows)


def _percent(bench: Bench, name: str, of: ParameterSet) -> str:
    value = bench.median(name, of, "extra memory, %")
    return "-" if value is None else f"{value:.1f}"
