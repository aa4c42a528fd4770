"""Runs the notebooks of this folder and stores their outputs in them, small and without traces.

    python examples/store.py

Pictures are kept in 128 colours, which is a third of their size and hardly to be seen; times of
execution and versions of tools are left out, so that a diff shows what changed.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbclient
import nbformat
from PIL import Image

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def store(path: Path) -> None:
    """Run the notebook at `path` from its first cell on, and write it with what came out."""
    book = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        book, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True
    )
    client.execute()
    book.metadata = METADATA
    for cell in book.cells:
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = in_few_colours(data["image/png"])
    nbformat.write(book, path)


def in_few_colours(png: str) -> str:
    """A picture, PNG in base64, with 128 colours at most."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        small = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    file = io.BytesIO()
    small.save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    for notebook in sorted(Path(__file__).parent.glob("*.ipynb")):
        store(notebook)
