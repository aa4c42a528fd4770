"""What all benchmarks share: taking turns, tables, and a result file that names the machine."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAUSE = 0.005  # seconds between turns; OpenMP's threads spin that long before they let a core go

Sample = dict[str, float]
"""What one turn measured, by the name of the measure."""

Turn = Callable[[], Sample]
Samples = dict[str, dict[str, list[float]]]
"""By contestant and measure: one value a round."""


def arguments(description: str) -> argparse.ArgumentParser:
    """The parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--peer",
        metavar="PYTHON",
        action="append",
        default=[],
        help="the interpreter of an environment with libraries to compare with (see README.md); may"
        " be given several times; what is in none of them is left out",
    )
    parser.add_argument("--rounds", type=int, help="turns of each contestant")
    parser.add_argument("--quick", action="store_true", help="a trial run: few rounds, no file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes")
    return parser


def interleave(turns: Mapping[str, Turn], rounds: int, warm_up: int = 1) -> Samples:
    """Each contestant's samples from `rounds` rounds; all take a turn in each.

    What disturbs the machine for a while so disturbs all of them, and the median of each stays
    comparable. The order is turned round every other time; `warm_up` rounds before do not count.
    """
    names = list(turns)
    samples: Samples = {name: {} for name in names}
    for number in range(-warm_up, rounds):
        for name in names if number % 2 else reversed(names):
            time.sleep(PAUSE)
            for measure, value in turns[name]().items():
                samples[name].setdefault(measure, []).extend([value] if number >= 0 else [])
        if sys.stderr.isatty():
            print(f"round {number + 1} of {rounds} ", end="\r", file=sys.stderr)
    return samples


def paired_difference(of: Sequence[float], minus: Sequence[float]) -> float:
    """The median of the differences round by round."""
    return median(a - b for a, b in zip(of, minus, strict=True))


def paired_ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """The median of the ratios round by round."""
    return median(a / b for a, b in zip(of, to, strict=True))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An aligned Markdown table; the first column is text, the others numbers."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, rule)
    return "\n".join(
        f"| {line[0]:<{widths[0]}} | "
        + " | ".join(f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        + " |"
        for line in lines
    )


def versions(*modules: str) -> dict[str, str]:
    """Those of Python and of `modules`, which are imported."""
    found = {name: str(importlib.import_module(name).__version__) for name in modules}
    return {"python": platform.python_version(), **found}


def machine() -> dict[str, Any]:
    """CPU, cores that this process may use, memory, operating system, and the load right now."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_name(),
        "cores": usable,
        "memory_gib": round(memory / 2**30, 1),
        "os": platform.platform(),
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1].strip() if found else platform.processor() or platform.machine()


class Report:
    """Collects what a benchmark found; prints the tables and writes the JSON.

    Make it before anything is measured, so that the load it notes is that of others.
    """

    def __init__(self, name: str, options: argparse.Namespace, **settings: Any) -> None:
        self.name, self.options = name, options
        self.machine = machine()
        self.settings = {"quick": options.quick, "rounds": options.rounds, **settings}
        self.versions: dict[str, dict[str, str]] = {}
        self.results: dict[str, dict[str, dict[str, float]]] = {}
        self.notes: list[str] = []
        cores, memory = self.machine["cores"], self.machine["memory_gib"]
        print(f"{name}: {self.machine['cpu']}, {cores} cores, {memory} GiB")
        if self.machine["load"] > 0.5:
            print(f"The machine is busy (load {self.machine['load']}): read the numbers with care.")

    def add(self, contestant: str, measure: str, values: Sequence[float], digits: int = 3) -> float:
        """Note the median and the quartiles of `values`; returns the median."""
        low, middle, high = quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
        rounded = [round(value, digits) for value in (middle, low, high)]
        numbers = dict(zip(("median", "q25", "q75"), rounded, strict=True))
        self.results.setdefault(contestant, {})[measure] = {**numbers, "rounds": len(values)}
        return middle

    def note(self, text: str) -> None:
        """Print a remark on the results, and keep it with them."""
        self.notes += [text]
        print(text)

    def having(self, where: Mapping[str, str], *libraries: str) -> dict[str, str]:
        """The part of `where`, as `homes` gives it, that is about `libraries`; notes the others."""
        for library in libraries:
            if library not in where:
                self.note(f"{library} was left out: give a --peer that has it (see README.md).")
        return {library: where[library] for library in libraries if library in where}

    def meet(self, others: Mapping[str, Any]) -> None:
        """Note the versions of the sides of `peers.py`."""
        self.versions |= {library: side.versions for library, side in others.items()}

    def show(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table."""
        print(f"\n{table(header, rows)}")

    def write(self, add: bool = False) -> None:
        """The JSON file, at `--out` or in `results/`; none after a quick run without `--out`.

        With `add`, results of other measures that the file has of the same machine and the same
        versions stay in it.
        """
        if self.options.quick and self.options.out is None:
            print("\nA quick run: nothing was written.")
            return
        slug = slugged(f"{self.machine['cpu']} {self.machine['cores']} cores")
        file = self.options.out or RESULTS / f"{self.name}-{slug}.json"
        content = {
            "benchmark": self.name,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": self.machine,
            "versions": self.versions,
            "settings": self.settings,
            "notes": self.notes,
            "results": self.results,
        }
        if add and file.is_file():
            _keep(json.loads(file.read_text()), content)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        print(f"\nWritten to {file}")


def _keep(old: dict[str, Any], content: dict[str, Any]) -> None:
    """Put into `content` what `old` has beyond it."""
    machines = [{**it["machine"], "load": None} for it in (old, content)]
    versions_before, versions_now = old["versions"], content["versions"]
    if machines[0] != machines[1] or {**versions_before, **versions_now} != {
        **versions_now,
        **versions_before,
    }:
        print("Another machine or other versions: what the file had is not kept.")
        return
    content["versions"] = {**versions_before, **versions_now}
    content["settings"]["sets"] = {**old["settings"]["sets"], **content["settings"]["sets"]}
    for contestant, measures in old["results"].items():
        now = content["results"].get(contestant, {})
        content["results"][contestant] = {**measures, **now}
    content["notes"] = list(dict.fromkeys(old["notes"] + content["notes"]))


def slugged(text: str) -> str:
    """`text` as a part of a file name.

    >>> slugged("Intel(R) Xeon(R) CPU @ 2.20GHz")
    'intel-xeon-cpu-2-20ghz'
    """
    plain = re.sub(r"\((r|tm)\)", "", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
