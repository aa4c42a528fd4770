"""How fast optimizers step: Treadle's chains beside torch, fastai, HeavyBall and optimi.

Five questions, one or more tables each; see README.md for what exactly is measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from bench import Bench
from common import Report, arguments, versions
from first_steps import extra_memory, first_step
from later_steps import later_step, overhead
from parameter_sets import SETS
from peers import homes
from recipe_steps import recipes
from stepping import FROM, HYPERS

QUESTIONS: dict[str, Callable[[Bench], None]] = {
    "first": first_step,
    "later": later_step,
    "overhead": overhead,
    "recipes": recipes,
    "memory": extra_memory,
}
QUICK = ("tiny", "small", "resnet34")


def options_given() -> argparse.Namespace:
    """The command line, with what a quick run changes."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--sets", nargs="+", choices=SETS, help=f"all by default; {', '.join(QUICK)} in a quick run"
    )
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument(
        "--limit",
        type=float,
        metavar="SECONDS",
        help="a contestant whose first step takes longer is left out (300; 20 in a quick run)",
    )
    parser.add_argument(
        "--add",
        action="store_true",
        help="keep what the result file has of other sets and questions, if it was measured on the"
        " same machine with the same versions",
    )
    options = parser.parse_args()
    options.sets = options.sets or list(QUICK if options.quick else SETS)
    options.limit = options.limit or (20 if options.quick else 300)
    options.rounds = options.rounds or (3 if options.quick else None)
    return options


def main() -> None:
    """Measure, print, write."""
    options = options_given()
    report = Report(
        "optimizer",
        options,
        hypers=HYPERS,
        threads=torch.get_num_threads(),
        sets={SETS[n].title: [len(SETS[n].shapes), SETS[n].numbers] for n in options.sets},
    )
    report.versions["treadle"] = versions("torch", "torchvision", "treadle")
    where = report.having(homes(options.peer), *FROM.values())
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(report, options, where, Path(scratch))
        for question in options.questions:
            QUESTIONS[question](bench)
    report.write(add=options.add)


if __name__ == "__main__":
    main()
