"""The chapter's experiment, Treadle beside fastai: accuracy by optimizer, over several seeds.

A small network (`chapter_work.py`) on `imagenette2-160-mini.tgz`. Both sides have the same files,
weights at the start, batch size, epochs, optimizers, rates and kinds of augmentation; the order of
the files and the augmentations are drawn by each in its own way. So the means of a row are compared
as independent ones, by Welch's interval.

Each training that is done is kept in a folder, and the next call goes on from there: with five
seeds on two cores a call does one seed in about 5 minutes, and five calls do all.
"""

from __future__ import annotations

import argparse
import math
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import chapter_work as work
from common import Report, arguments, versions
from data import MIRROR
from peers import Side, homes, sides
from treadle.cli.optimizers import chapter_rows
from treadle.data import (
    CategoryBlock,
    DataBlock,
    DataLoaders,
    GrandparentSplitter,
    ImageBlock,
    Normalize,
    aug_transforms,
    get_image_files,
    imagenet_stats,
    parent_label,
)
from treadle.data.home import data_home
from treadle.learner import Learner
from treadle.losses import CrossEntropyLossFlat
from treadle.metrics import accuracy
from treadle.study import Comparison, compare
from treadle.study.comparison import Row, Run, Summary
from treadle.study.kept import KeptRuns
from treadle.study.seeding import digest
from treadle.study.verdict import t_quantile

ARCHIVE = MIRROR / "imagenette2-160-mini.tgz"
COLUMNS = ("train_loss", "valid_loss", "accuracy", "total_seconds")


def options_given() -> argparse.Namespace:
    """The command line, with what a quick run changes."""
    parser = arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--epochs", type=int, help="of each training")
    parser.add_argument(
        "--minutes",
        type=float,
        default=8.0,
        metavar="M",
        help="begin no further seed that would not be done in so many; call again to go on",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="FOLDER",
        help="where trainings are kept [default: in TREADLE_HOME]; give a new one to begin anew",
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.epochs = options.epochs or (1 if options.quick else 8)
    name = "chapter-quick" if options.quick else f"chapter-{options.epochs}-epochs"
    options.keep = options.keep or data_home() / "benchmarks" / name
    return options


def pictures(folder: Path) -> Path:
    """The pictures of the archive, each cut to `PRESIZE` once, so that both libraries read the
    same pixels and neither measures its decoder."""
    cut = folder / f"pictures-{work.PRESIZE}"
    if cut.is_dir():
        return cut
    begun = cut.with_suffix(".begun")
    with tempfile.TemporaryDirectory() as unpacked, tarfile.open(ARCHIVE) as archive:
        archive.extractall(unpacked, filter="data")
        for file in get_image_files(unpacked):
            goal = begun.joinpath(*file.parts[-3:]).with_suffix(".png")
            goal.parent.mkdir(parents=True, exist_ok=True)
            Image.open(file).convert("RGB").resize((work.PRESIZE, work.PRESIZE)).save(goal)
    return begun.rename(cut)


def loaders(folder: Path) -> DataLoaders:
    """Treadle's loaders of the pictures."""
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=get_image_files,
        splitter=GrandparentSplitter(valid_name="val"),
        get_y=parent_label,
        batch_tfms=[
            *aug_transforms(min_scale=work.MIN_SCALE, size=work.SIZE),
            Normalize.from_stats(*imagenet_stats),
        ],
    )
    return block.dataloaders(folder, bs=work.BATCH_SIZE, num_workers=0, device="cpu")


class Experiment:
    """Both libraries' trainings, as far as they have come."""

    def __init__(self, options: argparse.Namespace, fastai: Side | None) -> None:
        self.options, self.fastai = options, fastai
        self.folder = pictures(options.keep)
        self.dls = loaders(self.folder)
        rows = chapter_rows()
        assert {name: row["lr"] for name, row in rows.items()} == {
            name: row["lr"] for name, row in work.ROWS.items()
        }
        self.rows = dict(list(rows.items())[: 2 if options.quick else None])
        settings = {"epochs": options.epochs, "size": work.SIZE, "batch_size": work.BATCH_SIZE}
        self.kept = KeptRuns(options.keep / "fastai", settings, dict.fromkeys(self.rows, "fastai"))

    def count(self) -> int:
        """How many trainings are kept."""
        return len(list(self.options.keep.glob("*/runs/*.json")))

    def ours(self, seeds: int) -> Comparison:
        """Treadle's trainings with the first `seeds` seeds; those that are kept are not redone."""

        def make_learner() -> Learner:
            return Learner(self.dls, work.net(), CrossEntropyLossFlat(), metrics=accuracy)

        folder = self.options.keep / "treadle"
        found = compare(make_learner, self.rows, seeds, self.options.epochs, folder=folder)
        for row in found.rows:
            for run in row.runs:
                assert run.initial_weights == digest(work.net_of(run.seed))
        return found

    def theirs(self, seeds: int) -> Comparison | None:
        """fastai's, likewise."""
        if self.fastai is None:
            return None
        rows = [
            Row(name, "fastai", [self._training(self.fastai, name, seed) for seed in range(seeds)])
            for name in self.rows
        ]
        return Comparison("fastai", {}, COLUMNS[:-1], rows, range(seeds))

    def _training(self, side: Side, row: str, seed: int) -> Run:
        run = self.kept.get(row, seed)
        if run is None:
            arguments = {"folder": str(self.folder), "row": row, "seed": seed}
            turn = side.prepare("chapter_fastai.training", **arguments, epochs=self.options.epochs)
            answer: dict[str, Any] = dict(turn())
            mine = work.fingerprint(work.net_of(seed))
            assert answer["initial_weights"] == mine, "the two sides start from other weights"
            finite = all(map(math.isfinite, answer["losses"]))
            run = Run(seed, None if finite else "it diverged", **answer)
            self.kept.put(row, run)
            accuracy_now = run.epochs[-1]["accuracy"]
            print(f"fastai, {row}, seed {seed}: {accuracy_now:.4f}, {run.total_seconds:.0f} s")
        return run


def welch(a: Summary, b: Summary) -> float:
    """Half the width of the 95 % interval of the difference of two means that were found
    independently (B. L. Welch, Biometrika 34, 1947); degrees of freedom are rounded down."""
    assert a.spread is not None and b.spread is not None
    parts = [s.spread**2 / s.n for s in (a, b) if s.spread is not None]
    total = sum(parts)
    if total == 0:
        return 0.0
    df = total**2 / sum(part**2 / (s.n - 1) for part, s in zip(parts, (a, b), strict=True))
    return t_quantile(0.975, max(int(df), 1)) * math.sqrt(total)


def show(report: Report, ours: Comparison, theirs: Comparison | None) -> None:
    """The tables, and the sentences below them."""
    for name, found in {"Treadle": ours, "fastai": theirs}.items():
        if found is None:
            continue
        lines = []
        for row in found.rows:
            cells = {column: row.summary(column) for column in COLUMNS}
            lines.append([row.name, *(str(cell or "–") for cell in cells.values())])
            report.results.setdefault(name, {})[row.name] = noted(cells, row)
        report.show([f"{name}, {len(found.seeds)} seeds", *COLUMNS], lines)
        report.note(f"{name}, best first: {', '.join(row.name for row in found.ranking())}.")
        for sentence in found.verdict():
            report.note(f"{name}: {sentence}")
    if theirs is not None and len(ours.seeds) > 1:
        compare_libraries(report, ours, theirs)


def noted(cells: Mapping[str, Summary | None], row: Row) -> dict[str, float]:
    """A row's means and spreads, flat."""
    found: dict[str, float] = {"seeds": len(row.runs), "finished": len(row.by_seed("accuracy"))}
    for column, summary in cells.items():
        if summary is not None:
            found[column] = round(summary.mean, 5)
            found[f"{column} spread"] = round(summary.spread or 0.0, 5)
    return found


def compare_libraries(report: Report, ours: Comparison, theirs: Comparison) -> None:
    """Row by row: the difference of the accuracies, and whether it is within the spread."""
    lines, apart = [], []
    for row in ours.rows:
        a, b = row.summary("accuracy"), theirs[row.name].summary("accuracy")
        if a is None or b is None or a.spread is None or b.spread is None:
            continue
        half = welch(a, b)
        agree = abs(a.mean - b.mean) <= half
        apart += [] if agree else [row.name]
        report.results.setdefault("Treadle minus fastai", {})[row.name] = {
            "accuracy": round(a.mean - b.mean, 5),
            "half of the 95 % interval": round(half, 5),
        }
        word = "yes" if agree else "NO"
        lines.append([row.name, str(a), str(b), f"{a.mean - b.mean:+.4f} ± {half:.4f}", word])
    head = ["accuracy", "Treadle", "fastai", "difference, 95 %", "within the spread"]
    report.show(head, lines)
    agreed = f"not in: {', '.join(apart)}" if apart else f"in all {len(lines)} rows"
    report.note(f"The two libraries agree within the spread {agreed}.")


def run(report: Report, experiment: Experiment) -> None:
    """Seed by seed, until all are done or the time is up."""
    options, began, last = experiment.options, time.perf_counter(), 0.0
    done, kept = 0, experiment.count()
    for seeds in range(1, options.rounds + 1):
        spent = time.perf_counter() - began
        if experiment.count() > kept and spent + last > 60 * options.minutes:
            break
        start = time.perf_counter()
        ours, theirs = experiment.ours(seeds), experiment.theirs(seeds)
        last, done = max(last, time.perf_counter() - start), seeds
    if done < options.rounds:
        report.note(f"{done} of {options.rounds} seeds are done: call again to go on.")
    show(report, ours, theirs)
    if done == options.rounds:
        report.write()


def main() -> None:
    """Cut the pictures, and run."""
    options = options_given()
    if not ARCHIVE.is_file():
        print(f"Skipped: there is no {ARCHIVE}.")
        return
    torch.set_num_threads(work.THREADS)
    settings = {"epochs": options.epochs, "batch_size": work.BATCH_SIZE, "size": work.SIZE}
    report = Report("chapter", options, **settings)
    report.versions["treadle"] = versions("torch", "treadle", "PIL")
    with sides(report.having(homes(options.peer), "fastai")) as others:
        report.meet(others)
        run(report, Experiment(options, others.get("fastai")))


if __name__ == "__main__":
    main()
