"""The part of the page on what was taken for what: the matrix, and the worst pairs with images."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from treadle.report.text import esc
from treadle.run.record import ConfusedExample, Confusion

MAX_TABLE_CLASSES = 30
MAX_PAIRS = 10


def matrix(confusion: Confusion) -> str:
    """The confusion matrix: a table with numbers, or a picture where there are many classes.

    Right answers are shaded by their share of the actual class. Wrong ones have a colour of
    their own and are shaded by the root of that share, so that a few in a hundred can be seen.
    """
    caption = "Each row is an actual class, each column what the model said."
    if len(confusion.vocab) > MAX_TABLE_CLASSES:
        caption += " A pixel is a pair of classes, in the order of the vocabulary."
        return f'<p class="note">{caption}</p>{_picture(confusion)}'
    return f'<p class="note">{caption}</p>{_table(confusion)}'


def pairs(confusion: Confusion, examples: Sequence[ConfusedExample]) -> str:
    """The most confused pairs, each with the examples that there are of it."""
    by_pair: dict[tuple[str, str], list[ConfusedExample]] = {}
    for example in examples:
        by_pair.setdefault((example.actual, example.predicted), []).append(example)
    worst = confusion.most_confused()[:MAX_PAIRS]
    if not worst:
        return '<p class="note">No sample was taken for another class.</p>'
    totals = dict(zip(confusion.vocab, map(sum, confusion.matrix), strict=True))
    note = (
        '<p class="note">Under an image: how sure the model was of its answer, and the loss.</p>'
        if examples
        else ""
    )
    return note + "".join(
        _pair(actual, predicted, n, totals[actual], by_pair.get((actual, predicted), []))
        for actual, predicted, n in worst
    )


def _table(confusion: Confusion) -> str:
    names = confusion.vocab
    head = "".join(f'<th scope="col"><span>{esc(name)}</span></th>' for name in names)
    body = []
    for i, (name, row) in enumerate(zip(names, confusion.matrix, strict=True)):
        total = sum(row)
        cells = "".join(
            _cell(n, n / total if total else 0.0, name, names[j], i == j) for j, n in enumerate(row)
        )
        right = f"{100 * row[i] / total:.0f}\u202f%" if total else "–"
        body.append(f'<tr><th scope="row">{esc(name)}</th>{cells}<td class="sum">{right}</td></tr>')
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Confusion matrix">'
        '<table class="cm">'
        f'<thead><tr><td></td>{head}<th scope="col"><span>right</span></th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(n: int, share: float, actual: str, predicted: str, hit: bool) -> str:
    if n == 0:
        return '<td class="zero">·</td>'
    shade = share if hit else math.sqrt(share)
    kind = ("hit" if hit else "miss") + (" deep" if shade > 0.5 else "")
    title = f"{actual}, right: {n}" if hit else f"{actual} taken for {predicted}: {n}"
    return f'<td class="{kind}" style="--v:{100 * shade:.0f}%" title="{esc(title)}">{n}</td>'


def _picture(confusion: Confusion) -> str:
    """A pixel a cell; the shade is in the alpha channel, so it suits a light and a dark page."""
    counts = np.asarray(confusion.matrix, np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    n = len(counts)
    pixels = np.empty((n, n, 4), np.uint8)
    pixels[..., :3] = (213, 94, 0)
    pixels[range(n), range(n), :3] = (37, 114, 178)
    shade = np.sqrt(shares)
    shade[range(n), range(n)] = np.diag(shares)
    pixels[..., 3] = np.rint(255 * shade)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    right = float(np.trace(counts) / max(counts.sum(), 1))
    alt = f"Confusion matrix of {n} classes; {100 * right:.1f} % of the samples lie on the diagonal"
    return f'<img class="matrix" src="{_data(file.getvalue())}" alt="{alt}">'


def _pair(
    actual: str, predicted: str, n: int, total: int, examples: Sequence[ConfusedExample]
) -> str:
    shots = "".join(_shot(example) for example in examples)
    return (
        f'<div class="pair"><h3><b>{esc(actual)}</b> taken for <b>{esc(predicted)}</b>'
        f'<span class="count">{n} of {total:,}</span></h3>'
        f"{f'<div class=shots>{shots}</div>' if shots else ''}</div>"
    )


def _shot(example: ConfusedExample) -> str:
    share = f"{100 * example.probability:.0f}\u202f%"
    alt = f"{example.file_name}: actual {example.actual}, predicted {example.predicted} at {share}"
    picture = (
        f'<img src="{_data(example.image)}" alt="{esc(alt)}" decoding="async">'
        if example.image is not None
        else '<div class="blank">no picture</div>'
    )
    return (
        f"<figure>{picture}<figcaption><b>{share}</b> · loss {example.loss:.2f}"
        f'<span class="file" title="{esc(example.file_name)}">{esc(example.file_name)}</span>'
        "</figcaption></figure>"
    )


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
