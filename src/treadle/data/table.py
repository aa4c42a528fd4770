"""Tables of labels: a CSV file or a pandas data frame as rows that getters read from."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from treadle.errors import DataError, UsageError, nearest

__all__ = ["Row", "Table", "as_items", "read_csv"]

Column = str | int
"""A column's name, or its place from 0."""


class _Columns:
    """The names of a table's columns, and the look-up in them."""

    def __init__(self, names: Sequence[Any]) -> None:
        self.names = list(names)
        self._times = Counter(self.names)
        self._places = {name: place for place, name in enumerate(self.names)}

    def place(self, column: Column) -> int:
        """Where `column` is: by name, else, for an int, by place."""
        place = self._places.get(column)
        if place is not None:
            if self._times[column] == 1:
                return place
            places = [i for i, name in enumerate(self.names) if name == column]
            raise DataError(
                f"There are {len(places)} columns of the name {column!r}, the columns "
                f"{' and '.join(map(str, places))} from 0. Give the place of the one that is meant."
            )
        if isinstance(column, int) and -len(self.names) <= column < len(self.names):
            return column
        if isinstance(column, int):
            raise DataError(
                f"There is no column {column}: the table has {len(self.names)}, "
                f"{', '.join(map(repr, self.names))}."
            )
        near = nearest(repr(column), map(repr, self.names))
        raise DataError(f"There is no column {column!r} in the table; {near}")


class Row:
    """A row of a table: `row["label"]`, `row.label` or, by place, `row[1]`.

    Raises `DataError` for a column that is not there, with the nearest name (`AttributeError`
    where it was asked for as an attribute).

    >>> row = Table(["fname", "label"], [("1.jpg", "cat")])[0]
    >>> row["label"], row.fname, row[-1]
    ('cat', '1.jpg', 'cat')
    """

    __slots__ = ("_columns", "_values")

    def __init__(self, columns: _Columns, values: Sequence[Any]) -> None:
        self._columns, self._values = columns, values

    def __getitem__(self, column: Column) -> Any:
        return self._values[self._columns.place(column)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copy and others look for
            raise AttributeError(name)
        try:
            return self[name]
        except DataError as error:
            raise AttributeError(str(error)) from None

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        pairs = zip(self._columns.names, self._values, strict=True)
        return f"Row({', '.join(f'{name}={value!r}' for name, value in pairs)})"


class Table(Sequence[Row]):
    """Rows that share the names of their columns: `table[3]` is a row, `table["label"]` the list
    of a column's values.

    >>> table = Table(["fname", "label"], [("1.jpg", "cat"), ("2.jpg", "dog")])
    >>> table.columns, table["label"], len(table)
    (['fname', 'label'], ['cat', 'dog'], 2)
    """

    def __init__(self, columns: Sequence[Any], rows: Sequence[Sequence[Any]]) -> None:
        self._columns, self._rows = _Columns(columns), rows

    @property
    def columns(self) -> list[Any]:
        """The names of the columns."""
        return list(self._columns.names)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Table: ...
    @overload
    def __getitem__(self, index: str) -> list[Any]: ...
    def __getitem__(self, index: int | slice | str) -> Row | Table | list[Any]:
        if isinstance(index, str):
            return self.column(index)
        if isinstance(index, slice):
            return Table(self._columns.names, self._rows[index])
        return Row(self._columns, self._rows[index])

    def column(self, column: Column) -> list[Any]:
        """The values of a column, given by name or place."""
        place = self._columns.place(column)
        return [row[place] for row in self._rows]

    def __repr__(self) -> str:
        names = ", ".join(map(str, self._columns.names))
        return f"Table of {len(self)} rows: {names}"


def as_items(source: Any) -> Any:
    """`source` as a sequence of items: a pandas data frame as a `Table`, which is read row by row
    much faster, a pandas series and what can only be gone through (a generator) as a list.

    Raises `UsageError` for what is no collection, or a mapping.
    """
    if hasattr(source, "iloc") and hasattr(source, "columns"):
        columns = [source.iloc[:, place].tolist() for place in range(len(source.columns))]
        return Table(list(source.columns), list(zip(*columns, strict=True)))
    if hasattr(source, "iloc"):
        return source.tolist()
    if isinstance(source, Mapping | str | os.PathLike) or not isinstance(source, Iterable):
        raise UsageError(
            f"{source!r} is no list of items; expected a list, a data frame or a Table. A single "
            "item goes in a list; of a folder DataBlock(get_items=...) makes one."
        )
    is_sequence = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return source if is_sequence else list(source)


def read_csv(
    path: str | os.PathLike[str],
    header: str | int | None = "infer",
    delimiter: str | None = None,
    quoting: Any = csv.QUOTE_MINIMAL,
    encoding: str = "utf-8-sig",
) -> Table:
    """The table in a CSV file. Its first line names the columns; `header=None` says that it does
    not, and the columns are numbered from 0.

    `delimiter` is "," unless given; `quoting` is one of the csv module's constants. White space
    around names of columns is dropped, and so are blank lines and a byte order mark. Empty cells
    are None. A column of whole numbers becomes ints, provided that they would be written the same
    again ("007" stays text); all else is text, the words NaN and NA too.

    Raises `DataError` for a file that is missing, empty, not in this encoding, that holds NUL, or
    whose lines have different lengths: it names the file and the line.
    """
    lines = _lines(Path(path), delimiter or ",", quoting, encoding)
    names: list[Any] = [name.strip() for name in lines[0][1]]
    if header is None:
        names = list(range(len(names)))
    else:
        lines = lines[1:]
    if not lines:
        raise DataError(f"The table {path} has a header and no rows; expected one row an item.")
    for number, cells in lines:
        if any("\0" in cell for cell in cells):
            raise DataError(
                f"The table {path} holds a NUL character in line {number}. It is damaged or in "
                "another encoding; give encoding=, often 'utf-16-le'."
            )
        if len(cells) != len(names):
            raise DataError(
                f"The table {path} has {len(cells)} cells in line {number} and {len(names)} in the "
                "first; expected as many. Text that holds the delimiter goes in quotation marks."
            )
    _check_delimiter(path, names, delimiter)
    columns = [_typed(column) for column in zip(*(cells for _, cells in lines), strict=True)]
    return Table(names, list(zip(*columns, strict=True)))


def _lines(path: Path, delimiter: str, quoting: Any, encoding: str) -> list[tuple[int, list[str]]]:
    """Pairs (number of the line, its cells) of the lines that are not blank."""
    try:
        with path.open(encoding=encoding, newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except OSError as error:
        raise DataError(f"The table {path} cannot be read ({error.strerror}).") from error
    except UnicodeError as error:
        raise DataError(
            f"The table {path} is not in the encoding {encoding} ({error}). Save it as UTF-8, or "
            "give encoding=, often 'latin-1', 'cp1252' or 'utf-16'."
        ) from error
    except LookupError as error:
        raise DataError(f"encoding={encoding!r} is none that Python knows.") from error
    except csv.Error as error:
        raise DataError(
            f"The table {path} is no CSV file: {error} (line {reader.line_num})."
        ) from error
    if not lines:
        raise DataError(f"The table {path} is empty; expected a header and one row an item.")
    return lines


def _check_delimiter(path: str | os.PathLike[str], names: list[Any], given: str | None) -> None:
    if len(names) == 1 and given is None and isinstance(names[0], str):
        other = next((mark for mark in ";\t|" if mark in names[0]), None)
        if other is not None:
            raise DataError(
                f"The table {path} has no ',' in its first line, {names[0]!r}; give "
                f"delimiter={other!r}."
            )


def _typed(column: Sequence[str]) -> list[Any]:
    """Cells as ints where all of them are, empty ones as None."""
    if all(_is_int(cell) for cell in column if cell):
        return [int(cell) if cell else None for cell in column]
    return [cell or None for cell in column]


def _is_int(cell: str) -> bool:
    digits = cell.removeprefix("-")
    return digits.isascii() and digits.isdigit() and (digits[0] != "0" or cell == "0")
