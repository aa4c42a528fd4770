"""What the loader itself costs: microseconds a batch, the first batch of many files, memory."""

from __future__ import annotations

import collections
import gc
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import workloads
from common import Report, arguments, versions
from data import chosen, imagenette, treadle_block
from treadle.data import DataLoader

FILES, CLASSES = 100_000, 100
EPOCHS = 10
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


class Clock:
    """Adds up the seconds that are spent in what it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, timed."""

        def run(*args: Any) -> Any:
            start = time.perf_counter()
            made = work(*args)
            self.seconds += time.perf_counter() - start
            return made

        return run


def own_cost(report: Report, files: list[str]) -> None:
    """Microseconds a batch of the loader in the caller's thread, and of its parts."""
    torch.set_num_threads(1)
    dl = loader(files, workers=0)
    first, items = dl.maker.first, dl.maker.items
    if first is None:
        raise SystemExit("There is no C compiler: the compiled pass cannot be measured.")
    collections.deque(dl, maxlen=0)  # the labels are known from the second epoch on
    gather, transforms = Clock(), Clock()
    dl.reader.read = gather.wrap(dl.reader.read)  # type: ignore[method-assign]
    items[0].run = gather.wrap(items[0].run)  # type: ignore[method-assign]
    prepared = transforms.wrap(first.prepared)  # drawing the transforms belongs to them
    first.prepared = lambda *args: transforms.wrap(prepared(*args))  # type: ignore[assignment,method-assign]
    samples: dict[str, list[float]] = {}
    for _ in range(report.options.rounds * 5):
        gather.seconds = transforms.seconds = 0.0
        took = workloads.seconds(lambda: collections.deque(dl, maxlen=0))
        parts = {"gather": gather.seconds, "transforms": transforms.seconds}
        rest = took - sum(parts.values())
        for name, spent in {"loader": took, **parts, "the rest": rest}.items():
            samples.setdefault(name, []).append(1e6 * spent / len(dl))
    found = {name: report.add(name, "us a batch", v, digits=1) for name, v in samples.items()}
    told = ", ".join(f"{name} {value:,.0f}" for name, value in found.items())
    report.note(f"us a batch: {told} (bar of the rest: {BARS['us a batch']})")


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
    """Megabytes of the process: before, in some of the epochs, and at its peak."""
    before = resident()
    dl = loader(files, workers=2)
    seen = []
    for _ in range(EPOCHS):
        for _ in dl:
            pass
        gc.collect()
        seen.append(resident())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    cached = sum(cache.nbytes for cache in dl.reader.caches.values()) / 1e6
    places = {f"epoch {number}": seen[number - 1] for number in (2, EPOCHS // 2, EPOCHS)}
    values = {"before": before, **places, "peak": peak}
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
