"""What getters read from paths and rows, and the tables that rows come from."""

from __future__ import annotations

import csv
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from treadle.data import (
    CategoryBlock,
    ColReader,
    ColSplitter,
    DataBlock,
    ImageBlock,
    RegexLabeller,
    Table,
    get_image_files,
    read_csv,
)
from treadle.data.table import as_items
from treadle.errors import DataError, UsageError

COLUMNS = ["fname", "label", "tags"]
ROWS = [("1.jpg", "cat", "sun sea"), ("2.jpg", "dog", ""), ("3.jpg", "cat", "sea")]


def rows_of_each_kind() -> list[Any]:
    record = namedtuple("record", COLUMNS)
    kinds: list[Any] = [
        Table(COLUMNS, ROWS)[0],
        dict(zip(COLUMNS, ROWS[0], strict=True)),
        record(*ROWS[0]),
    ]
    return kinds


def test_columns_are_read_from_every_kind_of_row() -> None:
    for row in rows_of_each_kind():
        assert ColReader("label")(row) == "cat"
        assert ColReader(["fname", "label"])(row) == ["1.jpg", "cat"]
        assert ColReader("tags", label_delim=" ")(row) == ["sun", "sea"]
        assert ColReader("fname", pref=Path("a/b"))(row) == Path("a/b/1.jpg")
        assert ColReader("fname", pref="a/", suff=".png")(row) == "a/1.jpg.png"
        with pytest.raises(DataError, match=r"no column 'lable' .*did you mean 'label'\?"):
            ColReader("lable")(row)
    for sequence in (ROWS[0], list(ROWS[0]), Table(COLUMNS, ROWS)[0], rows_of_each_kind()[2]):
        assert ColReader(1)(sequence) == "cat" and ColReader([0, 1])(sequence) == ["1.jpg", "cat"]
        with pytest.raises(DataError, match="no column 3"):
            ColReader(3)(sequence)
    row = Table(COLUMNS, ROWS)[1]
    assert row.label == row["label"] == row[1] == "dog" and list(row) == list(ROWS[1])
    assert repr(row) == "Row(fname='2.jpg', label='dog', tags='')"
    with pytest.raises(AttributeError, match="did you mean 'label'"):
        _ = row.lable


@pytest.mark.parametrize("empty", [None, "", float("nan")])
def test_empty_cells(empty: Any) -> None:
    assert ColReader("a", label_delim=" ")({"a": empty}) == []
    assert ColReader("a")({"a": empty}) is empty
    with pytest.raises(DataError, match="column 'a' is empty in"):
        ColReader("a", pref="x/")({"a": empty})


def test_what_is_no_row_is_the_value_itself() -> None:
    reader = ColReader("fname", pref=Path("a"))
    picture = Image.new("RGB", (2, 2))
    array = np.zeros((2, 2, 3), np.uint8)
    assert reader(Path("b/c.jpg")) == Path("b/c.jpg") and reader("c.jpg") == "c.jpg"
    assert reader(picture) is picture and reader(array) is array


def test_pandas_frames() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"fname": ["1.jpg", "2.jpg"], "n": [3, 4], "x": [0.5, float("nan")]})
    table = as_items(frame)
    assert table.columns == ["fname", "n", "x"] and len(table) == 2
    assert (
        table[1]["n"] == 4 and type(table[1]["n"]) is int and table["fname"] == ["1.jpg", "2.jpg"]
    )
    for row in (table[0], frame.iloc[0], next(frame.itertuples(index=False))):
        assert ColReader("n")(row) == 3 and ColReader(0)(row) == "1.jpg"
    with pytest.raises(DataError, match="no column 'nn'"):
        ColReader("nn")(frame.iloc[0])
    twice = pd.DataFrame([[1, 2]], columns=["a", "a"])
    with pytest.raises(DataError, match="2 columns of the name 'a', the columns 0 and 1"):
        as_items(twice)[0]["a"]
    assert as_items(twice)[0][1] == 2
    numbered = pd.DataFrame([["x", "y"]])
    assert ColReader(1)(as_items(numbered)[0]) == "y"
    for missing in (pd.NA, pd.NaT, None):
        with pytest.raises(DataError, match="label is missing"):
            CategoryBlock().setup([("a", 0), (missing, 1)], [])


def test_a_frame_is_a_source_of_a_data_block() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {"grey": range(10), "label": list("ab") * 5, "is_valid": [False, True] * 5}
    )
    frame.index = range(100, 110)
    picture = np.zeros((4, 4, 3), np.uint8)
    plan = DataBlock(
        (ImageBlock, CategoryBlock),
        get_x=lambda row: picture + np.uint8(row.grey),
        get_y=lambda row: row["label"],
        splitter=ColSplitter(),
    )
    with pytest.raises(DataError, match="one class, 'a'"):
        plan.datasets(frame)
    frame["label"] = list("aabb") * 2 + list("ab")
    parts = plan.datasets(frame)
    assert [row.grey for row in parts.train.items] == [0, 2, 4, 6, 8]
    assert np.asarray(parts.valid[0][0]).max() == 1 and parts.vocab == ["a", "b"]
    dls = plan.dataloaders(frame, bs=2, device="cpu")
    (x,) = next(iter(dls.test_dl(frame.iloc[5:7])))
    assert (x * 255).round().amax((1, 2, 3)).tolist() == [5, 6]


def test_items_of_every_kind() -> None:
    assert as_items(iter("ab")) == ["a", "b"] and as_items({"a"}) == ["a"]
    for kept in (["a"], ("a",), range(3), np.arange(3)):
        assert as_items(kept) is kept
    for wrong in ("a.jpg", Path("a"), {"a": 1}, 3, None):
        with pytest.raises(UsageError, match="is no list of items"):
            as_items(wrong)
    plan = DataBlock((ImageBlock,), get_items=lambda n: (i for i in range(n)))
    assert sorted([*plan.datasets(5).train.items, *plan.datasets(5).valid.items])[:1] == [0]
    pd = pytest.importorskip("pandas")
    assert as_items(pd.Series(["a", "b"], index=[7, 8])) == ["a", "b"]


def test_regex_labels() -> None:
    label = RegexLabeller(r"/([a-z_]+)_\d+\.jpg$")
    assert label(Path("pets/great_pyrenees_17.jpg")) == "great_pyrenees"
    assert label("pets/pug_1.jpg") == "pug"
    assert RegexLabeller(r"(\w+?)_", match=True)("ab_c_d") == "ab"
    with pytest.raises(DataError, match=r"is not found in 'pets/Pug_1\.jpg'"):
        label("pets/Pug_1.jpg")
    with pytest.raises(DataError, match="has no group"):
        RegexLabeller("abc")
    with pytest.raises(DataError, match="this is no pattern"):
        RegexLabeller("(abc")


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_csv(tmp_path: Path) -> None:
    text = (
        '\ufeff fname , label,n,mixed\r\n"a,1.jpg",ca\u0301t,1,007\r\n\r\n"2 ""x"".jpg",,-2,7\r\n'
    )
    table = read_csv(write(tmp_path / "a.csv", text))
    assert table.columns == ["fname", "label", "n", "mixed"] and len(table) == 2
    assert list(table[0]) == ["a,1.jpg", "ca\u0301t", 1, "007"]
    assert list(table[1]) == ['2 "x".jpg', None, -2, "7"]
    plain = read_csv(write(tmp_path / "b.csv", "1;2\n3;\n"), header=None, delimiter=";")
    assert plain.columns == [0, 1] and list(plain[1]) == [3, None] and plain.column(1) == [2, None]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a,b\n", "has a header and no rows"),
        (b"a,b\n1,2\n3\n", "1 cells in line 3 and 2 in the first"),
        (b"a,b\n1,2,3\n", "3 cells in line 2 and 2 in the first"),
        (b"a;b\n1;2\n", r"no ',' in its first line, 'a;b'; give delimiter=';'"),
        ("a,b\nx,é\n".encode("latin-1"), r"not in the encoding utf-8-sig .*latin-1"),
        ("a,b\n".encode("utf-16"), "not in the encoding"),
        (b'a,b\n"1,2\n', "is no CSV file: .*line"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, content: bytes, match: str) -> None:
    path = write(tmp_path / "labels.csv", content)
    with pytest.raises(DataError, match=match) as caught:
        read_csv(path)
    assert "labels.csv" in str(caught.value)


def test_other_ways_to_miss_a_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv cannot be read"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_csv(tmp_path)
    path = write(tmp_path / "a.csv", "a,b\nx,é\n".encode("latin-1"))
    assert read_csv(path, encoding="latin-1")[0]["b"] == "é"
    with pytest.raises(DataError, match="none that Python knows"):
        read_csv(path, encoding="latin-99")


cells = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\ufeff"))


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1)
    )
)
def test_any_text_comes_back_from_csv(tmp_path_factory: Any, rows: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    names = [f"c{i}" for i in range(len(rows[0]))]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([names, *rows])
    table = read_csv(path)
    assert table.columns == names
    assert [["" if c is None else str(c) for c in row] for row in table] == rows


def test_pandas_reads_the_same(tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    path = write(tmp_path / "a.csv", "fname,label,n\n1.jpg,cat,3\n2.jpg,dog,4\n")
    ours, theirs = read_csv(path), as_items(pd.read_csv(path))
    assert ours.columns == theirs.columns and [*map(list, ours)] == [*map(list, theirs)]


def test_tables() -> None:
    table = Table(COLUMNS, ROWS)
    assert table["label"] == ["cat", "dog", "cat"] and len(table[1:]) == 2
    assert table[1:][0].fname == "2.jpg" and repr(table) == "Table of 3 rows: fname, label, tags"
    with pytest.raises(IndexError):
        table[3]
    with pytest.raises(DataError, match="no column 7: the table has 3"):
        table.column(7)
    odd = Table([" label", "x"], [(1, 2)])
    with pytest.raises(DataError, match="did you mean ' label'"):
        odd[0]["label"]


def test_many_files_are_listed_quickly(tmp_path: Path) -> None:
    for label in "abcd":
        (tmp_path / label).mkdir()
        for i in range(500):
            (tmp_path / label / f"{i:04}.jpg").touch()
    start = time.perf_counter()
    files = get_image_files(tmp_path)
    elapsed = time.perf_counter() - start
    assert len(files) == 2000 and files == sorted(files)
    assert elapsed < 0.5  # 0.01 s on an idle machine


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"closed cannot be read \(Permission denied\)"):
        get_image_files(tmp_path)
