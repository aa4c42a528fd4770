"""The page around a report: one HTML file that needs nothing else, and loads nothing.

`template.html` is its frame, `page.css` its style, `chart.js` the only script, which the content
security policy names by its hash: no other script runs, and nothing is fetched.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from string import Template

from treadle.report.text import MISSING, date, esc, flatten


@dataclass(frozen=True)
class Section:
    """A part of the page. `key` is its address within the page; one without a body is left out."""

    key: str
    title: str
    body: str


def page(
    title: str,
    kicker: str,
    started: str,
    headline: str,
    sections: Iterable[Section],
    writer: str,
) -> str:
    """The whole page as text; `headline` and the bodies of `sections` are HTML."""
    told = [section for section in sections if section.body]
    script = _file("chart.js")
    return Template(_file("template.html")).substitute(
        title=esc(title),
        kicker=esc(kicker),
        started=f'<time datetime="{esc(started)}">{esc(date(started))}</time>',
        headline=headline,
        contents=_contents(told),
        sections="\n".join(map(_section, told)),
        writer=esc(writer),
        style=_file("page.css"),
        script=script,
        hash=_hash(script),
    )


def _section(section: Section) -> str:
    return (
        f'<section id="{section.key}" aria-labelledby="{section.key}-title">'
        f'<h2 id="{section.key}-title">{section.title}</h2>{section.body}</section>'
    )


def _contents(sections: Iterable[Section]) -> str:
    links = "".join(f'<a href="#{section.key}">{section.title}</a>' for section in sections)
    return f'<nav aria-label="Contents">{links}</nav>' if links else ""


def _file(name: str) -> str:
    return files("treadle.report").joinpath(name).read_text("utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def data_url(image: bytes) -> str:
    """A PNG within the page."""
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def scrolling(label: str, table: str, tall: bool = False) -> str:
    """A table in a box that scrolls where the page is too narrow for it, also by the keyboard."""
    return (
        f'<div class="wide{" tall" if tall else ""}" tabindex="0" role="region" '
        f'aria-label="{esc(label)}">{table}</div>'
    )


def settings(values: Mapping[str, object]) -> str:
    """Nested settings as a table of dotted names; empty text if there are none."""
    rows = "".join(
        f'<tr><th scope="row">{dotted(name)}</th><td>{esc(text) or MISSING}</td></tr>'
        for name, text in flatten(values)
    )
    return f'<table class="pairs"><tbody>{rows}</tbody></table>' if rows else ""


def dotted(name: str) -> str:
    """A long dotted name, which may break after a dot."""
    return esc(name).replace(".", ".<wbr>")
