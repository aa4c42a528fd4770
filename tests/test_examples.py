"""The notebooks run from top to bottom, offline, and what they show is stored in them.

Running them takes about half a minute on two cores. `python examples/store.py` runs them and stores
what comes out.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import nbclient
import nbformat
import pytest
from PIL import Image

BOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
TRACES = re.compile(
    r"/(home|root|tmp|Users|work|usr|site-packages)/|0x[0-9a-f]{6,}|\r|\x1b|<progress"
)

each_book = pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def texts(cell):
    """What a cell's outputs say in words."""
    for output in cell.outputs:
        data = output.get("data", {})
        is_picture = "image/png" in data
        yield output.get("text", "")
        yield from (data.get(kind, "") for kind in ("text/html", "text/plain") if not is_picture)


def kinds(cell):
    """The outputs by what they are."""
    return [
        output.output_type + (" picture" if "image/png" in output.get("data", {}) else "")
        for output in cell.outputs
    ]


def test_there_is_the_chapter():
    assert "01_the_training_process" in [path.stem for path in BOOKS]


@each_book
def test_what_is_stored_is_whole_and_leaves_no_traces(path):
    book = read(path)
    nbformat.validate(book)
    cells = code_cells(book)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not [o for o in cell.outputs if o.output_type == "error"], cell.id
        assert not [o for o in cell.outputs if o.get("name") == "stderr"], cell.id
        for text in texts(cell):
            assert not TRACES.search(text), (cell.id, TRACES.search(text))
    assert path.stat().st_size < 1_000_000


@each_book
def test_the_stored_pictures_can_be_seen(path):
    pngs = [
        output.data["image/png"]
        for cell in code_cells(read(path))
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pngs) >= (8 if path.stem == "01_the_training_process" else 1)
    for png in pngs:
        with Image.open(io.BytesIO(base64.b64decode(png))) as image:
            assert image.width > 400 and len(image.convert("L").getcolors()) > 10


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook client's own parts
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@each_book
def test_it_runs_and_shows_what_is_stored(path, tmp_path):
    """The same kinds of outputs; and the very same words where nothing was trained or timed."""
    stored, book = read(path), read(path)
    for cell in code_cells(book):
        cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(
        book,
        timeout=280,
        resources=resources,
        coalesce_streams=True,  # one print may come in two pieces
    )
    client.execute()
    for old, new in zip(code_cells(stored), code_cells(book), strict=True):
        assert kinds(new) == kinds(old), new.id
        trained = re.search(r"fit|predict|compare|comparison|lr_find|interp", new.source)
        if not trained and "picture" not in " ".join(kinds(new)):
            assert list(texts(new)) == list(texts(old)), f"{new.id}: store the outputs anew"


def test_the_chapters_adam_is_the_librarys():
    path = next(path for path in BOOKS if path.stem == "01_the_training_process")
    (cell,) = (cell for cell in read(path).cells if cell.id == "adam_same_code")
    assert cell.outputs[0].text.startswith("True\n")
