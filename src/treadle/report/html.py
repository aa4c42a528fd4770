"""The report of a run: what happened, section by section, from a `RunRecord`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from treadle.errors import UsageError
from treadle.report import confusion, facts, samples
from treadle.report.against import differences
from treadle.report.chart import Line, chart
from treadle.report.page import Section, page, scrolling, settings
from treadle.report.text import (
    duration,
    esc,
    general,
    headline,
    is_share,
    number,
    seconds,
)
from treadle.run.folder import write_text
from treadle.run.record import RunRecord
from treadle.world import world

_MAX_EPOCH_MARKS = 40
_MAX_OPEN_ROWS = 30


def write_report(
    record: RunRecord, path: str | os.PathLike[str], against: RunRecord | None = None
) -> Path:
    """Writes the report of a run to `path`, a single HTML file, and returns the path.

    With `against` it begins with what differs from that run: settings, results, curves. The file
    appears whole or not at all, so it may be rewritten after every epoch. Of several processes
    only the main one writes. Raises DataError if it cannot be written.

    >>> import tempfile
    >>> names = ["epoch", "train_loss", "valid_loss", "accuracy", "time"]
    >>> record = RunRecord("digits", "2026-01-31T12:00:00", names, [[0, 0.9, 0.7, 0.8, "0:04"]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     "80.0\u202f%" in write_report(record, f"{folder}/report.html").read_text("utf-8")
    True
    """
    if not world().is_main:
        return Path(path)
    return write_text(path, render(record, against))


def render(record: RunRecord, against: RunRecord | None = None) -> str:
    """The report of a run as the text of an HTML page."""
    sections = [
        *(differences(record, against) if against else []),
        Section("loss", "Loss", _loss(record)),
        Section("epochs", "Epochs", _epochs(record)),
        Section("metrics", "Metrics", _metrics(record)),
        Section("schedule", "Schedule", _schedule(record)),
        *_confusion(record),
        Section("worst", "Highest losses", samples.worst(record.worst)),
        Section("seen", "As the model saw them", samples.seen(record.seen)),
        Section("texts", "What it writes", facts.texts(record.texts)),
        Section("balance", "Class balance", facts.balance(record.balance)),
        Section("batches", "Slowest batches", facts.slowest(record.times)),
        Section("skipped", "Skipped files", facts.skipped(record.skipped)),
        Section("configuration", "Configuration", settings(record.config)),
        Section("environment", "Environment", settings(record.environment)),
    ]
    return page(
        title=record.name,
        kicker="the report of a run",
        started=record.started,
        headline=_headline(record),
        sections=sections,
        writer=f"Treadle {record.environment.get('treadle', '')}".strip(),
    )


def _headline(record: RunRecord) -> str:
    if not record.rows:
        return '<p class="note">No epoch has ended yet.</p>'
    tiles = [_metric_tile(record, name) for name in _headline_metrics(record)]
    updates = f"{len(record.losses):,} updates" if record.losses else ""
    tiles.append(_tile("epochs", f"{len(record.rows):,}", updates))
    times = [seconds(value) for value in record.column("time") if value is not None]
    if times:
        tiles.append(_tile("time", duration(sum(times)), f"{duration(_mean(times))} an epoch"))
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _headline_metrics(record: RunRecord) -> list[str]:
    """The first metric, if there is any, and the validation (else the training) loss."""
    metrics = [n for n in record.metric_names if n not in ("epoch", "time") and "loss" not in n]
    losses = [n for n in ("valid_loss", "train_loss") if n in record.metric_names]
    return metrics[:1] + losses[:1]


def _metric_tile(record: RunRecord, name: str) -> str:
    values = record.column(name)
    note = ""
    best = _best(name, values)
    if best is not None:
        word = "highest" if _higher_is_better(name) else "lowest"
        at = "the last epoch" if best == len(values) - 1 else f"epoch {_epoch(record, best)}"
        note = f"{word}: {headline(name, values[best])} in {at}"
        if best == len(values) - 1:
            note = f"{word} of all epochs" if len(values) > 1 else ""
    return _tile(name.replace("_", " "), headline(name, values[-1]), note)


def _tile(name: str, value: str, note: str) -> str:
    return f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd><dd>{esc(note)}</dd></div>"


def _best(name: str, values: Sequence[object]) -> int | None:
    """Where the best value stands; None for a metric of which "better" is not known."""
    if not (is_share(name) or "loss" in name):
        return None
    sign = -1 if _higher_is_better(name) else 1
    known = [(sign * v, i) for i, v in enumerate(map(_float, values)) if math.isfinite(v)]
    return min(known)[1] if known else None


def _higher_is_better(name: str) -> bool:
    return name.endswith("accuracy")


def _epochs(record: RunRecord) -> str:
    if not record.rows:
        return ""
    best = _best("valid_loss", record.column("valid_loss")) if len(record.rows) > 1 else None
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name in record.metric_names)
    rows = ("".join(map(_table_cell, record.metric_names, row)) for row in record.rows)
    body = "".join(
        f"<tr{' class=best' if i == best else ''}>{row}</tr>" for i, row in enumerate(rows)
    )
    note = '<p class="note">The lowest validation loss is marked.</p>' if best is not None else ""
    table = f'<table class="epochs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return scrolling("Table of the epochs", table, tall=len(record.rows) > _MAX_OPEN_ROWS) + note


def _table_cell(name: str, value: object) -> str:
    is_time = name == "time" and value is not None
    return f"<td>{esc(duration(seconds(value)) if is_time else number(value))}</td>"


def _loss(record: RunRecord) -> str:
    n = len(record.losses)
    # An epoch's validation belongs where its updates end.
    valid = [
        (float(at), float(v))
        for at, v in zip(record.iters, record.column("valid_loss"), strict=False)
        if isinstance(v, int | float)
    ]
    lines = [
        Line("raw", "each update", range(1, len(record.raw_losses) + 1), record.raw_losses),
        Line("train", "train, smoothed", range(1, n + 1), record.losses),
        Line("valid", "valid", [at for at, _ in valid], [v for _, v in valid], dots=True),
    ]
    if not any(len(line.xs) for line in lines):
        return ""
    marks = list(record.iters[:-1]) if len(record.iters) <= _MAX_EPOCH_MARKS else []
    return chart("", lines, "updates", _describe_loss(record, valid), marks, n_ticks=6) + _lost(
        record
    )


def _describe_loss(record: RunRecord, valid: Sequence[tuple[float, float]]) -> str:
    said = []
    if record.losses:
        first, last = general(record.losses[0]), general(record.losses[-1])
        said.append(f"Training loss from {first} to {last} over {len(record.losses):,} updates.")
    if valid:
        said.append(f"Validation loss from {general(valid[0][1])} to {general(valid[-1][1])}.")
    return " ".join(said) or "Training loss at each update."


def _lost(record: RunRecord) -> str:
    """Losses that are not finite cannot be drawn, so they are told."""
    lost = sum(not math.isfinite(loss) for loss in record.raw_losses or record.losses)
    if not lost:
        return ""
    updates = "1 update" if lost == 1 else f"{lost:,} updates"
    return f'<p class="note alarm">{updates} had a loss that is not a finite number.</p>'


def _schedule(record: RunRecord) -> str:
    moving = {name: values for name, values in record.hps.items() if len(set(values)) > 1}
    charts = "".join(
        chart(
            name,
            [Line("train", name, range(1, len(values) + 1), values)],
            "updates",
            f"{name} from {general(values[0])} to {general(values[-1])} over {len(values):,} "
            f"updates, between {general(min(values))} and {general(max(values))}.",
        )
        for name, values in moving.items()
    )
    held = "".join(
        f"<span>{esc(name)} <b>{esc(general(values[0]))}</b></span>"
        for name, values in record.hps.items()
        if len(values) > 0 and name not in moving
    )
    return (f'<div class="grid-of-charts">{charts}</div>' if charts else "") + (
        f'<p class="held">Held constant: {held}</p>' if held else ""
    )


def _metrics(record: RunRecord) -> str:
    """The columns of the table over the epochs: the losses together, each metric on its own."""
    if len(record.rows) < 2:
        return ""  # a curve of one point says no more than the table
    groups: dict[str, list[Line]] = {}
    for name in record.metric_names:
        values = [_float(value) for value in record.column(name)]
        if name in ("epoch", "time") or not any(map(math.isfinite, values)):
            continue
        epochs = [_epoch(record, i) for i in range(len(values))]
        kind = {"train_loss": "train", "valid_loss": "valid"}.get(name, "metric")
        label = name if kind == "metric" else kind
        groups.setdefault(name if kind == "metric" else "loss", []).append(
            Line(kind, label, epochs, values, dots=True)
        )
    charts = [chart(name, lines, "epoch", _describe(lines)) for name, lines in groups.items()]
    return f'<div class="grid-of-charts">{"".join(charts)}</div>' if charts else ""


def _describe(lines: Sequence[Line]) -> str:
    """Curves over the epochs in words."""
    return " ".join(
        f"{line.label} from {number(line.ys[0])} to {number(line.ys[-1])} in {len(line.ys)} epochs."
        for line in lines
    )


def _confusion(record: RunRecord) -> list[Section]:
    if record.confusion is None:
        return []
    return [
        Section("confusion", "Confusion", confusion.matrix(record.confusion)),
        Section("confused", "Most confused", confusion.pairs(record.confusion, record.confused)),
    ]


def _epoch(record: RunRecord, i: int) -> int:
    """The number that row `i` gives its epoch."""
    value = record.column("epoch")[i] if "epoch" in record.metric_names else i
    if not isinstance(value, int):
        raise UsageError(f"Row {i} has the epoch {value!r}; an epoch is a whole number.")
    return value


def _float(value: object) -> float:
    """A cell of the table as a number; NaN if it holds none."""
    return float(value) if isinstance(value, int | float) else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
