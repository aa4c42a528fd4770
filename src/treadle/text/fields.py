"""One text of the columns of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treadle.data import ColReader
from treadle.registry import register
from treadle.text.files import text_of
from treadle.text.tokenize import FLD

__all__ = ["FieldReader"]

Column = str | int


@register
class FieldReader:
    """The text in a column of a row; of several columns, each with `xxfld` and its number before.

    >>> from treadle.data import Table
    >>> row = Table(["title", "body"], [("On cats", "They purr.")])[0]
    >>> FieldReader(["title", "body"])(row)
    'xxfld 1 On cats xxfld 2 They purr.'
    """

    def __init__(self, cols: Column | Sequence[Column]) -> None:
        self.cols = [cols] if isinstance(cols, str | int) else list(cols)
        self._readers = [ColReader(col) for col in self.cols]

    def as_arguments(self) -> dict[str, Any]:
        """The arguments that make it."""
        return {"cols": self.cols}

    def __call__(self, row: Any) -> Any:
        """The text. Raises `DataError` for a column that is not there."""
        if isinstance(row, str):  # a text alone, to be predicted
            return row
        values = [reader(row) for reader in self._readers]
        if len(values) == 1:
            return values[0]
        return " ".join(f"{FLD} {i} {text_of(value)}" for i, value in enumerate(values, 1))
