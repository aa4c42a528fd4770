"""What a training survives: kills, crashes, damage, full disks, signals, Ctrl-C; and what it costs.

    python benchmarks/reliability.py                   # all of it
    python benchmarks/reliability.py kills --runs 1000
    python benchmarks/reliability.py costs --add       # the rest of the file stays

The faults are those of `tests/reliability`, by the same code, only more of them. It ends with the
status 1 if one of them was not survived.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "reliability"))

import checkpoint_faults as faults
import killed
from checkpoint_kit import Tried
from resume_cases import CASES

import checkpoint_costs
from common import Report, arguments, versions

SEEDS = [1, 2, 3, 4]
SAVE_KILLS, FLIPS, CUTS, LEVELS, SIGNALS, INTERRUPTS = 200, 1000, 200, 20, 200, 200


class Faults:
    """The rows of the table, as they are found."""

    def __init__(self, report: Report, folder: Path) -> None:
        self.report, self.folder = report, folder
        self.rows: list[list[str]] = []
        self.lost = 0

    def place(self, name: str) -> Path:
        """A new folder."""
        made = self.folder / name
        made.mkdir()
        return made

    def add(self, fault: str, tried: int, wrong: Sequence[str], **more: float) -> None:
        """A row: how many faults of a kind, and how many of them were not survived."""
        self.report.results[fault] = {"counts": {"tried": tried, "lost": len(wrong), **more}}
        told = ", ".join(f"{value:,} {name}" for name, value in more.items())
        self.rows.append([fault, f"{tried:,}", f"{len(wrong):,}", told])
        self.lost += len(wrong)
        for said in wrong[:20]:
            self.report.note(f"LOST, {fault}: {said}")
        print(f"{fault}: {tried:,}, lost {len(wrong):,}", told, flush=True)


def kills(found: Faults) -> None:
    """SIGKILLs of trainings at random moments; each must end with the bits of one without."""
    options = found.report.options
    total = killed.Tally()
    runs = -(-options.runs // (2 * len(CASES)))
    for name in CASES:
        for workers in (0, 2):
            folder = found.place(f"kills-{name}-{workers}")
            tally = killed.in_processes(folder, [name], workers, runs, 0, SEEDS[: options.jobs])
            all_kills = tally.kills["all"]
            found.add(f"kills: {name}, {workers} workers", tally.runs, tally.wrong, kills=all_kills)
            total.add(tally)
    if total.kills:
        shares = {moment: round(total.share(moment), 3) for moment in total.kills}
        found.report.results["kills, shares of all"] = {"moments": shares}
        told = ", ".join(f"{moment} {share:.0%}" for moment, share in shares.items())
        found.report.note(f"{total.runs:,} runs, {total.kills['all']:,} kills: {told}")


def crashes(found: Faults) -> None:
    """Ends of the process at each named moment of saving, rotating and loading."""
    for phase in faults.PHASES:
        passed = faults.moments(found.place(f"moments-{phase}"), phase)
        tried = faults.crashes(found.place(f"crashes-{phase}"), phase, passed)
        found.add(f"crashes: {phase}", tried.count, tried.wrong, moments=len(set(passed)))
    tried, newest = faults.save_kills(found.place("save-kills"), SAVE_KILLS)
    found.add("kills of a process that saves without end", tried.count, tried.wrong, saves=newest)


def damage(found: Faults) -> None:
    """Flipped bits and cut files: refused, and the checkpoint before is used."""
    _add(found, "flipped bits", faults.flips(found.place("flips"), FLIPS))
    _add(found, "cut files", faults.cuts(found.place("cuts"), CUTS))


def full(found: Faults) -> None:
    """A disk that ends in mid-write: what was there stands."""
    _add(found, "full disks", faults.full_disks(found.place("full"), LEVELS))


def _add(found: Faults, fault: str, tried: Tried) -> None:
    found.add(fault, tried.count, tried.wrong)


def signals(found: Faults) -> None:
    """SIGTERM and SIGUSR1 at random moments: a checkpoint, the status, and the same bits."""
    given = [str(found.place("signals")), str(SIGNALS), "1"]
    done = subprocess.run(
        [sys.executable, str(Path(killed.__file__).with_name("signalled.py")), *given],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    left = round(told["leave"], 2)
    found.add("signals", told["signals"], told["wrong"], runs=told["runs"], **{"s to leave": left})


def interrupts(found: Faults) -> None:
    """Ctrl-C at random moments: the learner can be used, and stands as it stood before the verb."""
    test = Path(killed.__file__).with_name("test_interrupts.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(test), "-k", "random_moments"],
        env={**os.environ, "TREADLE_TEST_INTERRUPTS": str(INTERRUPTS)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    found.add("Ctrl-C", INTERRUPTS, [done.stdout] if done.returncode else [])


def costs(found: Faults) -> None:
    """What a checkpoint of 100 MB costs the training."""
    checkpoint_costs.measure(found.report, found.place("costs"))


QUESTIONS: dict[str, Callable[[Faults], None]] = {
    "kills": kills,
    "crashes": crashes,
    "damage": damage,
    "full": full,
    "signals": signals,
    "interrupts": interrupts,
    "costs": costs,
}


def options_given() -> argparse.Namespace:
    """The command line, with what a quick run changes."""
    parser = arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--runs", type=int, help="trainings that are killed (1,000)")
    parser.add_argument("--jobs", type=int, default=2, choices=[1, 2, 3, 4], help="at a time")
    parser.add_argument("--add", action="store_true", help="keep what the result file has")
    options = parser.parse_args()
    unknown = set(options.questions) - QUESTIONS.keys()
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; give any of {', '.join(QUESTIONS)}")
    options.questions = options.questions or list(QUESTIONS)
    options.runs = options.runs or (16 if options.quick else 1000)
    options.rounds = options.rounds or (2 if options.quick else 40)
    return options


def main() -> int:
    """Ask what was asked for; gives the exit status."""
    options = options_given()
    warnings.simplefilter("error")  # a checkpoint that is passed over is one that is damaged
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # a fork beside threads
    report = Report("reliability", options, sets={})
    report.versions["treadle"] = versions("torch", "treadle", "safetensors", "numpy")
    with tempfile.TemporaryDirectory() as scratch:
        found = Faults(report, Path(scratch))
        for question in options.questions:
            began = time.perf_counter()
            QUESTIONS[question](found)
            seconds = round(time.perf_counter() - began)
            report.settings["sets"][question] = {"seconds": seconds, **_asked(question, options)}
    if found.rows:
        report.show(["fault", "tried", "lost", ""], found.rows)
    report.write(add=options.add)
    return 1 if found.lost else 0


def _asked(question: str, options: argparse.Namespace) -> dict[str, Any]:
    if question == "kills":
        return {"runs": options.runs, "jobs": options.jobs}
    return {"rounds": options.rounds} if question == "costs" else {}


if __name__ == "__main__":
    sys.exit(main())
