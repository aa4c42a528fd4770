"""What the loader itself costs: microseconds a batch, the first batch of many files, memory."""

from __future__ import annotations

import gc
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import torch
from PIL import Image

import workloads
from common import Report, Sample, arguments, interleave, paired_difference, versions
from data import chosen, imagenette, treadle_block
from treadle.data import DataLoader
from treadle.data.fused import compiled
from treadle.data.samples import through

FILES, CLASSES = 100_000, 100
EPOCHS = 10
BATCHES = 8
BARS = {"us a batch": 300, "first batch, s": 3.0}


def loader(files: list[str], workers: int) -> DataLoader:
    """The training loader of data.py, all its pictures decoded."""
    paths, bs = [Path(file) for file in files], workloads.BATCH_SIZE
    dls = treadle_block().dataloaders(
        paths, bs=bs, num_workers=workers, device="cpu", cache="memory", seed=0
    )
    dls.train.fill_cache()
    train: DataLoader = dls.train
    return train


def passes(dl: DataLoader) -> Callable[[], object]:
    """The gather and the transforms of the batches of an epoch, everything else done before."""
    kernel, first = compiled(), dl.maker.first
    if kernel is None or first is None:
        raise SystemExit("There is no C compiler: the compiled pass cannot be measured.")
    prepared = []
    for task in list(dl._tasks(0))[:BATCHES]:
        draws = dl._draws(task)
        samples, draws = dl.maker.read(task, draws, Event())
        for _ in through(dl.maker.items, samples, draws):
            pass
        prepared.append((samples.columns[0], draws))
    size = prepared[0][0][0].shape[:2]

    def run() -> None:
        for pictures, draws in prepared:
            first.prepared(size, draws)(pictures, kernel, 1, dl.maker.buffers)

    return run


def own_cost(report: Report, files: list[str]) -> None:
    """Microseconds a batch that the loader adds, in the caller's thread, to the pass."""
    torch.set_num_threads(1)
    dl = loader(files, workers=0)
    alone = passes(dl)

    def whole() -> None:
        dl.load_state_dict({**dl.state_dict(), "epoch": 0, "batch": 0})
        for at, _ in enumerate(dl):
            if at == BATCHES - 1:
                break

    def turn(work: Callable[[], object]) -> Callable[[], Sample]:
        return lambda: {"us a batch": 1e6 * workloads.seconds(work) / BATCHES}

    turns = {"loader": turn(whole), "pass": turn(alone)}
    samples = interleave(turns, report.options.rounds * 5, warm_up=2)
    times = {name: measured["us a batch"] for name, measured in samples.items()}
    for name, values in times.items():
        report.add(name, "us a batch", values, digits=1)
    added = paired_difference(times["loader"], times["pass"])
    report.add("added by the loader", "us a batch", [added], digits=1)
    report.note(f"The loader adds {added:.0f} us a batch to the pass (bar: {BARS['us a batch']}).")


@contextmanager
def many_files() -> Iterator[Path]:
    """A folder of small JPEG files in folders by class, half of it for validation."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        small = root / "small.jpg"
        Image.new("RGB", (200, 180), (90, 120, 150)).save(small)
        content = small.read_bytes()
        small.unlink()
        for index in range(FILES):
            folder = (
                root / ("val" if index // CLASSES % 2 else "train") / f"class{index % CLASSES:03d}"
            )
            if index < 2 * CLASSES:
                folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index:06d}.jpg").write_bytes(content)
        yield root


def first_batch(report: Report) -> None:
    """Seconds from a folder's name to the first batch."""
    with many_files() as root:
        for _ in range(report.options.rounds):
            start = time.perf_counter()
            dls = treadle_block(listed=True).dataloaders(root, bs=64, device="cpu")
            next(iter(dls.train))
            took = time.perf_counter() - start
            report.add(f"{FILES:,} files", "first batch, s", [took])
            print(f"first batch of {FILES:,} files: {took:.2f} s")
    report.note(
        f"First batch of {FILES:,} files in {took:.2f} s (bar: {BARS['first batch, s']:g})."
    )


def resident() -> float:
    """This process's memory now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory(report: Report, files: list[str]) -> None:
    """Megabytes of the process: before, in the second epoch, in the last, and at its peak."""
    before = resident()
    dl = loader(files, workers=2)
    seen = []
    for _ in range(EPOCHS):
        for _ in dl:
            pass
        gc.collect()
        seen.append(resident())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    cached = sum(cache.nbytes for cache in dl.reader.caches.values()) / 1e6
    values = {"before": before, "epoch 2": seen[1], f"epoch {EPOCHS}": seen[-1], "peak": peak}
    for name, value in values.items():
        report.add("memory", f"{name}, MB", [value], digits=1)
    report.add("memory", "pictures kept, MB", [cached], digits=1)
    told = ", ".join(f"{name} {value:.0f}" for name, value in values.items())
    report.note(f"Memory in MB, {cached:.0f} of it pictures: {told}")


def options_given() -> Any:
    """The command line."""
    options = arguments(__doc__ or "").parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


def main() -> None:
    """Ask all three questions."""
    options = options_given()
    report = Report("data-costs", options)
    report.versions["treadle"] = versions("torch", "treadle", "numpy")
    with imagenette() as path:
        if path is None:
            print("Skipped: there is no imagenette2-160.tgz; set TREADLE_DATA_MIRROR to its place.")
            return
        files = chosen(path, 1536)
        memory(report, files)
        own_cost(report, files)
    first_batch(report)
    report.write()


if __name__ == "__main__":
    main()
