"""The code on each page of the documentation runs, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from treadle.loop import events
from treadle.loop.events import event
from treadle.loop.explain import OUTLINE

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
CODE = r"^```python\n(.*?)^```"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(CODE, page.read_text(), flags=re.M | re.S)
    assert blocks
    namespace: dict[str, object] = {}
    for code in blocks:
        exec(compile(code, page.name, "exec"), namespace)


def test_the_page_on_callbacks_shows_the_loop_as_it_is():
    (shown,) = re.findall(r"^```text\n(.*?)^```", page("callbacks"), flags=re.M | re.S)
    assert shown.strip() == OUTLINE.strip()


def test_the_page_on_callbacks_names_every_event_and_every_cancellation():
    text = page("callbacks")
    table = text[text.index("## The events") : text.index("## Who comes first")]
    spoken = {name for name in event if name in table or name.startswith("after_cancel_")}
    assert spoken == set(event)
    assert all(f"`{name}`" in text for name in vars(events) if name.startswith("Cancel"))


def test_the_page_on_data_shows_the_summary_as_it_is(capsys):
    text = page("data")
    (shown,) = re.findall(r"^```text\n(.*?)^```", text, flags=re.M | re.S)
    block = next(b for b in re.findall(CODE, text, flags=re.M | re.S) if "plan = " in b)
    namespace: dict[str, object] = {}
    exec("from treadle.all import *\npath = digits_path()\n" + block, namespace)
    namespace["plan"].summary(namespace["path"])  # type: ignore[attr-defined]
    printed = capsys.readouterr().out.replace(str(namespace["path"]), "digits")
    assert no_floats(printed) == no_floats(shown)


def no_floats(text: str) -> str:
    """The ranges of floats left out: their last digits may differ from machine to machine."""
    return re.sub(r"(float32 in )\S+", r"\1", text).strip()


def page(name: str) -> str:
    return next(path for path in PAGES if path.stem == name).read_text()
