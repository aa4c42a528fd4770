"""Images a second of the loaders, on Imagenette: JPEG files to augmented batches on the CPU."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import workloads
from common import Report, Samples, Turn, arguments, interleave, versions
from peers import Side, homes, side, sides
from treadle.data import (
    CategoryBlock,
    DataBlock,
    GrandparentSplitter,
    ImageBlock,
    Normalize,
    Resize,
    URLs,
    aug_transforms,
    get_image_files,
    imagenet_stats,
    parent_label,
    untar_data,
)
from workloads import evenly, loader_turn

MIRROR = Path(__file__).parents[2] / "shared" / "data"
WORKERS = (0, 2)
MEASURES = ("first epoch", "later epoch", "first validation", "validation")
BARS = {"first epoch": 6, "later epoch": 15, "validation": 10}
"""At least so many times what fastai does, with or without workers."""
FOLDERS = ("train", "val")


def options_given() -> argparse.Namespace:
    """The command line, with what a quick run changes."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="training images; a third as many to validate on; 0 takes all there are",
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    if options.limit is None:
        options.limit = 256 if options.quick else 1536
    return options


@contextmanager
def imagenette() -> Iterator[Path | None]:
    """The unpacked folder, in TREADLE_HOME or a temporary folder; None where there is no archive.

    The archive is taken from TREADLE_DATA_MIRROR, or from `../shared/data` beside the repository.
    """
    mirror = os.environ.setdefault("TREADLE_DATA_MIRROR", str(MIRROR))
    name = URLs.IMAGENETTE_160.rsplit("/", 1)[-1]
    if "://" not in mirror and not (Path(mirror) / name).is_file():
        yield None
        return
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("TREADLE_HOME", scratch)
        yield untar_data(URLs.IMAGENETTE_160)


def chosen(path: Path, limit: int) -> list[str]:
    """The files to load, of all classes alike, each read once so that no disk is measured."""
    everything = [sorted(get_image_files(path / folder)) for folder in FOLDERS]
    counts = [limit, -(-limit // 3)] if limit else [len(files) for files in everything]
    picked = [
        file
        for files, count in zip(everything, counts, strict=True)
        for file in evenly(files, count)
    ]
    for file in picked:
        file.read_bytes()
    return [str(file) for file in picked]


def treadle_block(listed: bool = False) -> DataBlock:
    """The data block: of a list of files, or of a folder whose files are to be listed."""
    return DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=get_image_files if listed else None,
        splitter=GrandparentSplitter(valid_name="val"),
        get_y=parent_label,
        item_tfms=Resize(workloads.PRESIZE),
        batch_tfms=[
            *aug_transforms(min_scale=workloads.MIN_SCALE, size=workloads.SIZE),
            Normalize.from_stats(*imagenet_stats),
        ],
    )


def treadle(files: list[str], warm_up: list[str], workers: int) -> Turn:
    """The loaders of `files`; those of `warm_up` are read through once at the start."""

    def make(names: list[str]) -> Any:
        paths = [Path(name) for name in names]
        bs = workloads.BATCH_SIZE
        return treadle_block().dataloaders(paths, bs=bs, num_workers=workers, device="cpu")

    loader_turn(lambda: make(warm_up))
    return lambda: loader_turn(lambda: make(files))


def contestants(files: list[str], fastai: Side | None, torchvision: Side) -> dict[str, Turn]:
    """Treadle and fastai, without workers and with two; torchvision in a plain DataLoader."""
    work = {"files": files, "warm_up": evenly(files, 2 * workloads.BATCH_SIZE)}
    turns = {f"Treadle, {n} workers": treadle(**work, workers=n) for n in WORKERS}
    if fastai is not None:
        for n in WORKERS:
            turns[f"fastai, {n} workers"] = fastai.prepare("fastai_side.loaders", **work, workers=n)
    torchvisions = torchvision.prepare("torchvision_side.loaders", **work, workers=2)
    return {**turns, "torchvision v2, 2 workers": torchvisions}


def compare(report: Report, samples: Samples) -> None:
    """How many times fastai's best the best of ours is."""
    for measure, bar in BARS.items():
        best = {
            name: max(median(v[measure]) for who, v in samples.items() if who.startswith(name))
            for name in ("Treadle", "fastai")
            if any(who.startswith(name) for who in samples)
        }
        if "fastai" in best:
            times = best["Treadle"] / best["fastai"]
            report.note(f"{measure}: {times:.1f} x fastai's best (bar: {bar})")


def run(report: Report, files: list[str]) -> None:
    """Measure, print, write."""
    options = report.options
    report.versions["treadle"] = versions("torch", "treadle", "simplejpeg", "PIL")
    with sides(report.having(homes(options.peer), "fastai")) as others:
        fastai = others.get("fastai")
        report.meet(others)
        with side() as torchvision:
            report.meet({"torchvision": torchvision})
            turns = contestants(files, fastai, torchvision)
            samples = interleave(turns, options.rounds, warm_up=0)
    rows = [
        [name, *(f"{report.add(name, m, measured[m], digits=1):,.0f}" for m in MEASURES)]
        for name, measured in samples.items()
    ]
    report.show(["images a second", *MEASURES], rows)
    compare(report, samples)
    report.write()


def main() -> None:
    """Unpack the data where they are, and run."""
    options = options_given()
    with imagenette() as path:
        if path is None:
            print("Skipped: there is no imagenette2-160.tgz; set TREADLE_DATA_MIRROR to its place.")
            return
        files = chosen(path, options.limit)
        settings = {"images": len(files), "batch_size": workloads.BATCH_SIZE}
        run(Report("data", options, **settings), files)


if __name__ == "__main__":
    main()
