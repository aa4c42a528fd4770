"""A comparison as a table: cells for whoever draws one, plain text, and HTML for a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.study.comparison import Comparison, Row, Summary

Cell = tuple[str, str]
"""A mean, and its spread (empty where there is none)."""


def heads(comparison: Comparison) -> list[str]:
    """What stands above the columns.

    Times are in seconds.
    """
    own = {"total_seconds": "time, s", "steps_per_second": "steps/s", "rate_found": "rate"}
    return [own.get(column, column.replace("_", " ")) for column in comparison.columns]


def cells(comparison: Comparison, row: Row) -> list[Cell]:
    """The cells of a row; of one that never got to its end, dashes."""
    return [cell(column, row.summary(column)) for column in comparison.columns]


def cell(column: str, summary: Summary | None) -> Cell:
    """A mean and a spread, times and speeds with one decimal, rates with two digits, all else with
    four decimals.

    >>> from treadle.study.comparison import Summary
    >>> cell("accuracy", Summary.of([0.9, 0.92])), cell("total_seconds", Summary.of([12.34]))
    (('0.9100', '± 0.0141'), ('12.3', ''))
    """
    if summary is None:
        return "–", ""
    form = ".1f" if column in ("total_seconds", "steps_per_second") else ".4f"
    form = ".2g" if column == "rate_found" else form
    spread = "" if summary.spread is None else f"± {summary.spread:{form}}"
    return f"{summary.mean:{form}}", spread


def label(comparison: Comparison, row: Row) -> str:
    """The name of a row, and how many of its runs the numbers are of where it is not all."""
    n = sum(run.finished for run in row.runs)
    return row.name if n == len(comparison.seeds) else f"{row.name} ({n}/{len(comparison.seeds)})"


def text_table(comparison: Comparison) -> str:
    """Aligned lines: the title, the table, the verdict."""
    lines = [["", *heads(comparison)]]
    for row in comparison.rows:
        told = [" ".join(part for part in parts if part) for parts in cells(comparison, row)]
        lines.append([label(comparison, row), *told])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        [comparison.title, *(_aligned(line, widths) for line in lines), *comparison.verdict()]
    )


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = line
    right = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
    return "  ".join([first.ljust(widths[0]), *right]).rstrip()


def html_table(comparison: Comparison) -> str:
    """The same as HTML, everything in it escaped; the best mean of each column is bold."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *heads(comparison)))
    body = []
    for row in comparison.rows:
        tip = html.escape(row.describe)
        tds = [f'<th style="text-align:left" title="{tip}">{_esc(label(comparison, row))}</th>']
        for column, (mean, spread) in zip(comparison.columns, cells(comparison, row), strict=True):
            said = f"<b>{mean}</b>" if row is comparison.best(column) else mean
            tds.append(f'<td style="text-align:right">{said} <small>{spread}</small></td>')
        body.append(f"<tr>{''.join(tds)}</tr>")
    said = "".join(f"<p>{_esc(sentence)}</p>" for sentence in comparison.verdict())
    return (
        f"<table><caption>{_esc(comparison.title)}</caption><tr>{head}</tr>"
        f"{''.join(body)}</table>{said}"
    )


def _esc(text: str) -> str:
    return html.escape(text)
