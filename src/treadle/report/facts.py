"""The parts of the page about the data and the time they took."""

from __future__ import annotations

from collections.abc import Sequence

from treadle.report.page import scrolling
from treadle.report.text import MISSING, esc
from treadle.run.record import BatchTimes, ClassBalance

MAX_CLASSES = 30
MAX_SKIPPED = 100


def balance(classes: ClassBalance | None) -> str:
    """A bar for each class; of very many classes the largest and the smallest."""
    if classes is None or not any(classes.train):
        return ""
    rows = list(zip(classes.vocab, classes.train, classes.valid, strict=True))
    said = _said(classes)
    if len(rows) > MAX_CLASSES:
        rows.sort(key=lambda row: row[1], reverse=True)
        half = MAX_CLASSES // 2
        rows = rows[:half] + rows[-half:]
        said += f" The {half} largest and the {half} smallest are shown."
    most = max(max(classes.train), max(classes.valid), 1)
    body = "".join(
        f'<tr><th scope="row">{esc(name)}</th><td>{train:,}</td><td>{valid:,}</td>'
        f'<td class="bar" aria-hidden="true"><i style="--v:{100 * train / most:.1f}%"></i>'
        f'<i style="--v:{100 * valid / most:.1f}%"></i></td></tr>'
        for name, train, valid in rows
    )
    head = (
        '<tr><th scope="col">class</th>'
        '<th scope="col"><span class="key train">train</span></th>'
        '<th scope="col"><span class="key valid">valid</span></th><td></td></tr>'
    )
    table = f'<table class="bars"><thead>{head}</thead><tbody>{body}</tbody></table>'
    return f'<p class="note">{said}</p>{scrolling("Samples of each class", table)}'


def _said(classes: ClassBalance) -> str:
    low, high = min(classes.train), max(classes.train)
    n = len(classes.vocab)
    if low == high:
        return f"Each of the {n:,} classes has {low:,} training samples."
    smallest = classes.vocab[list(classes.train).index(low)]
    largest = classes.vocab[list(classes.train).index(high)]
    return (
        f"{n:,} classes of {low:,} ({esc(smallest)}) to {high:,} ({esc(largest)}) training samples."
    )


def slowest(times: BatchTimes | None) -> str:
    """The batches that took longest, beside what a batch takes otherwise."""
    if times is None:
        return ""
    share = times.waiting / times.total if times.total else 0.0
    note = (
        f"Half of the {times.n:,} training batches took at most {_ms(times.median)}; "
        f"{100 * share:.0f}\u202f% of all their time passed waiting for data."
    )
    body = "".join(
        f"<tr><td>{batch.epoch}</td><td>{batch.batch:,}</td><td>{_ms(batch.seconds)}</td>"
        f"<td>{_ms(batch.waiting)}</td>"
        f"<td>{_times(batch.seconds, times.median)}</td></tr>"
        for batch in times.slowest
    )
    names = ("epoch", "batch", "took", "waited for data", "of the median")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    table = f'<table class="epochs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<p class="note">{note}</p>{scrolling("The slowest batches", table)}'


def skipped(files: Sequence[tuple[str, str]]) -> str:
    """The files that could not be read, and why."""
    if not files:
        return ""
    n = "1 file" if len(files) == 1 else f"{len(files):,} files"
    more = f" The first {MAX_SKIPPED} are listed." if len(files) > MAX_SKIPPED else ""
    rows = "".join(
        f'<tr><th scope="row">{esc(name)}</th><td>{esc(reason)}</td></tr>'
        for name, reason in files[:MAX_SKIPPED]
    )
    return (
        f'<p class="note">{n} could not be read and took no part.{more}</p>'
        f'<table class="pairs files"><tbody>{rows}</tbody></table>'
    )


def _times(value: float, unit: float) -> str:
    return f"{value / unit:.1f}×" if unit else MISSING


def _ms(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f}\u202fs"
    return f"{1000 * seconds:.{1 if seconds < 0.1 else 0}f}\u202fms"


def texts(written: Sequence[str]) -> str:
    """What a language model wrote, a paragraph each."""
    return "".join(f'<blockquote class="note">{esc(text)}</blockquote>' for text in written)
