"""The other recipes of treadle.optim, each against the time that its memory streams imply."""

from __future__ import annotations

import inspect
from typing import Any

import treadle.optim
from bench import Bench
from common import Turn, interleave
from parameter_sets import ParameterSet
from stepping import Make, parameters, recipe, streams, timed_steps

NORMS = ("Larc", "Lamb")  # a second pass over the parameter
MATRICES = ("Muon", "SOAP", "Shampoo")  # matrix products, not memory, take their time
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD, momentum": ("SGD", {"mom": 0.9}),
    "RMSProp, momentum": ("RMSProp", {"mom": 0.9}),
}
BASE = "Adam"
TIME, STREAMS, RATIO = "recipe's step, ms", "memory streams", "time, implied = 1"


def found() -> dict[str, Make]:
    """The recipes that are there, with their defaults, and the variants above."""
    names = [
        name
        for name in treadle.optim.__all__
        if name[0].isupper() and inspect.isfunction(getattr(treadle.optim, name))
    ]
    wanted = {name: (name, {}) for name in names if name not in (BASE, "AdamW", *MATRICES)}
    made = {name: recipe(of, **given) for name, (of, given) in {**wanted, **VARIANTS}.items()}
    return {name: make for name, make in made.items() if make is not None}


def recipes(bench: Bench) -> None:
    """Do other recipes take the time that their memory streams imply?"""
    makers = found()
    for of in (of for of in bench.sets if of.large):
        rows = [_pair(bench, of, name, makers[name]) for name in sorted(makers, key=_order)]
        header = [f"recipe on {of.title}", "ms", "streams", "implied ms", "× implied", "× Adam"]
        bench.report.show(header, rows)


def _order(name: str) -> tuple[bool, str]:
    return name in NORMS, name


def _pair(bench: Bench, of: ParameterSet, name: str, make: Make) -> list[str]:
    """One recipe and Adam take turns, so that never more than two have their state in memory."""
    params = parameters(of.shapes)
    base, opt = recipe(BASE)(params), make(params)
    turns = {BASE: _turn(base), name: _turn(opt)}
    samples = interleave(turns, bench.rounds(of, at_most=15), warm_up=2)
    share = streams(opt) / streams(base)
    pairs = list(zip(samples[name]["ms"], samples[BASE]["ms"], strict=True))
    bench.add(name, of, TIME, [mine for mine, _ in pairs])
    bench.add(name, of, STREAMS, [streams(opt)])
    bench.add(name, of, "time, Adam's = 1", [mine / adam for mine, adam in pairs])
    bench.add(name, of, RATIO, [mine / adam / share for mine, adam in pairs])
    time, count, ratio, plain = (
        bench.median(name, of, measure) or 0.0
        for measure in (TIME, STREAMS, RATIO, "time, Adam's = 1")
    )
    norm = name in NORMS
    implied, ratio_cell = ("-", "-") if norm else (f"{time / ratio:.2f}", f"{ratio:.2f}")
    return [name, f"{time:.2f}", f"{count:.0f}", implied, ratio_cell, f"{plain:.2f}"]


def _turn(opt: Any) -> Turn:
    return lambda: timed_steps(opt)
