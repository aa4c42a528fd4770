"""Rows of a batch of text, as a table to read."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from treadle.errors import printable
from treadle.world import main_speaks

__all__ = ["print_texts", "text_table"]


@main_speaks()
def print_texts(
    loader: Any, batch: Sequence[Tensor], max_n: int, trunc_at: int, answers: Tensor | None = None
) -> None:
    """Print up to `max_n` rows of `batch`: the tokens as the model reads them, and the targets.

    Of a language model both are text, of a classifier the targets are labels. `answers` are the
    model's, decoded by the loss.
    """
    text, *others = loader.dataset.blocks
    x, n = batch[0][:max_n], loader.n_inp
    rows = [[_tokens(text, row[:trunc_at])] for row in x]
    heads = ["text"]
    for place, target in enumerate(batch[n:]):
        heads.append("category" if others else "text_")
        for row, value in zip(rows, target[:max_n], strict=True):
            row.append(
                _shown(
                    others[place] if others else None,
                    text,
                    value[:trunc_at] if value.ndim else value,
                )
            )
    if answers is not None:
        heads.append("answer")
        block = others[0] if others else None
        for row, value in zip(rows, answers[:max_n], strict=True):
            row.append(_shown(block, text, value[:trunc_at] if value.ndim else value))
    print(text_table(heads, rows))


def _shown(block: Any, text: Any, value: Tensor) -> str:
    if block is None:
        return _tokens(text, value)
    answer = block.decode(value.cpu())
    return ", ".join(map(str, answer)) if isinstance(answer, list) else str(answer)


def _tokens(block: Any, numbers: Tensor) -> str:
    tokens = block.numericalize.decode(numbers.tolist())
    return " ".join(token for token in tokens if token != block.tokenizer.pad)


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int = 0) -> str:
    """Columns of text, wrapped to `width` characters; 0 means the terminal's, or 100.

    >>> print(text_table(["text", "label"], [["one two three four", "a"], ["five", "b"]], 20))
    text         | label
    -------------+------
    one two      | a
    three four   |
    -------------+------
    five         | b
    """
    at_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = width or (shutil.get_terminal_size().columns if at_terminal else 100)
    cells = [[_plain(cell) for cell in row] for row in rows]
    widths = _widths([list(heads), *cells], width)
    rule = "-+-".join("-" * w for w in widths)
    blocks = [_lines(row, widths) for row in [list(heads), *cells]]
    return f"\n{rule}\n".join("\n".join(block) for block in blocks)


def _plain(cell: str) -> str:
    return printable(cell.replace("\n", "⏎"))


def _widths(rows: list[list[str]], width: int) -> list[int]:
    """The narrow columns as they are; the others share what is left."""
    wanted = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = width - 3 * (len(wanted) - 1)
    widths = list(wanted)
    wide = sorted(range(len(wanted)), key=wanted.__getitem__)
    for count, column in zip(range(len(wide), 0, -1), wide, strict=True):
        widths[column] = max(min(wanted[column], left // count), 4)
        left -= widths[column]
    return widths


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [textwrap.wrap(cell, w) or [""] for cell, w in zip(row, widths, strict=True)]
    height = max(map(len, cells))
    filled = [cell + [""] * (height - len(cell)) for cell in cells]
    lines = zip(*filled, strict=True)
    return [
        " | ".join(part.ljust(w) for part, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
