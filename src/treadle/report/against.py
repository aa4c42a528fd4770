"""What differs between two runs: settings and results side by side, their curves in one chart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from treadle.report.chart import Line, chart
from treadle.report.page import Section, dotted, scrolling
from treadle.report.text import MISSING, date, esc, flatten, general, number
from treadle.run.record import RunRecord

_NAMES = "this run", "the other"


def differences(record: RunRecord, other: RunRecord) -> list[Section]:
    """The sections with which the report of `record` begins when it is set against `other`."""
    return [
        Section("against", "Difference", _settings(record, other)),
        Section("results", "Results of both", _results(record, other)),
        Section("losses", "Losses of both", _losses(record, other)),
    ]


def _settings(record: RunRecord, other: RunRecord) -> str:
    ours, theirs = (dict(_all_settings(run)) for run in (record, other))
    every = list(dict.fromkeys([*ours, *theirs]))
    differing = [name for name in every if ours.get(name) != theirs.get(name)]
    same = len(every) - len(differing)
    who = f"The other run is <b>{esc(other.name)}</b> of {esc(date(other.started))}."
    if not differing:
        return f'<p class="note">{who} All {same} settings are the same.</p>'
    rows = "".join(
        f'<tr><th scope="row">{dotted(name)}</th><td>{esc(ours.get(name) or MISSING)}</td>'
        f"<td>{esc(theirs.get(name) or MISSING)}</td></tr>"
        for name in differing
    )
    columns = "".join(f'<th scope="col">{esc(name)}</th>' for name in _NAMES)
    table = f'<table class="pairs two"><thead><tr><td></td>{columns}</tr></thead>'
    table += f"<tbody>{rows}</tbody></table>"
    note = f"{same} settings are the same." if same != 1 else "One setting is the same."
    return f'<p class="note">{who}</p>{table}<p class="note after">{note}</p>'


def _all_settings(record: RunRecord) -> list[tuple[str, str]]:
    environment = {f"environment.{name}": value for name, value in record.environment.items()}
    return flatten({**record.config, **environment})


def _results(record: RunRecord, other: RunRecord) -> str:
    """The last row of each run's table."""
    columns = [n for n in record.metric_names if n in other.metric_names and n != "epoch"]
    if not (record.rows and other.rows and columns):
        return ""
    head = "".join(f'<th scope="col">{esc(name)}</th>' for name in columns if name != "time")
    body = "".join(
        f'<tr><th scope="row" class="name">{esc(name)}</th><td>{len(run.rows):,}</td>'
        + "".join(
            f"<td>{esc(number(run.column(column)[-1]))}</td>"
            for column in columns
            if column != "time"
        )
        + "</tr>"
        for name, run in zip(_NAMES, (record, other), strict=True)
    )
    top = f'<tr><th scope="col" class="name">run</th><th scope="col">epochs</th>{head}</tr>'
    table = f'<table class="epochs"><thead>{top}</thead><tbody>{body}</tbody></table>'
    return scrolling("Results of both runs", table)


def _losses(record: RunRecord, other: RunRecord) -> str:
    lines = [
        line
        for i, (name, run) in enumerate(zip(_NAMES, (record, other), strict=True))
        for line in _lines(f"c{i}", name, run)
    ]
    if not any(len(line.xs) for line in lines):
        return ""
    said = " ".join(
        f"{line.label} from {general(line.ys[0])} to {general(line.ys[-1])}."
        for line in lines
        if len(line.ys)
    )
    return chart("", lines, "updates", f"Losses of both runs. {said}", n_ticks=6)


def _lines(kind: str, name: str, run: RunRecord) -> Sequence[Line]:
    """The smoothed training loss, and dashed the validation loss where its epochs end."""
    valid = [
        (at, float(value))
        for at, value in zip(run.iters, run.column("valid_loss"), strict=False)
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    xs, ys = [at for at, _ in valid], [value for _, value in valid]
    return [
        Line(kind, f"{name}: train", range(1, len(run.losses) + 1), run.losses),
        Line(f"{kind} dashed", f"{name}: valid", xs, ys, dots=True),
    ]
