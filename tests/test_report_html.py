"""The report is one well-formed page that holds the run's numbers and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from treadle.errors import DataError
from treadle.report import write_report
from treadle.report.html import render
from treadle.run import (
    BatchTimes,
    ClassBalance,
    ConfusedExample,
    Confusion,
    RunRecord,
    SeenSamples,
    SlowBatch,
)

NAMES = ["epoch", "train_loss", "valid_loss", "accuracy", "time"]
SECTIONS = ["loss", "epochs", "metrics", "schedule", "confusion", "confused", "worst", "seen"]
SECTIONS += ["balance", "batches", "skipped", "configuration", "environment"]
VOID = {"meta", "link", "img", "wbr"}


def png(color=(200, 30, 60)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 24), color).save(file, format="PNG")
    return file.getvalue()


def record(epochs: int = 3, updates: int = 8) -> RunRecord:
    n = epochs * updates
    raw = np.linspace(2.3, 0.4, n) + 0.1 * np.sin(np.arange(n))
    return RunRecord(
        name="digits",
        started="2026-01-31T14:05:09",
        metric_names=NAMES,
        rows=[[e, 1 / (e + 1), 1.5 / (e + 1), 0.5 + 0.1 * e, "1:05"] for e in range(epochs)],
        config={"opt": {"lr": 0.003}, "size": 28},
        environment={"treadle": "9.8.7", "device": "cpu"},
        losses=np.linspace(2.3, 0.4, n).tolist(),
        raw_losses=raw.tolist(),
        hps={"lr": np.linspace(1e-3, 3e-3, n).tolist(), "wd": [0.01] * n},
        iters=[updates * (e + 1) for e in range(epochs)],
        confusion=Confusion(["cat", "dog"], [[40, 2], [3, 55]]),
        confused=[ConfusedExample("dog", "cat", 0.875, 2.25, "dog 1.jpg", png())],
        worst=[ConfusedExample("dog", "cat", 0.999, 6.5, "dog 2.jpg", png())],
        seen=[SeenSamples(0, ["cat", "dog"], [png(), png()])],
        balance=ClassBalance(["cat", "dog"], [60, 90], [42, 58]),
        times=BatchTimes(n, 0.02, 1.0, 0.25, [SlowBatch(1, 3, 1.5, 0.5)]),
        skipped=[("bad.jpg", "cut short")],
    )


class Page(HTMLParser):
    """Checks that tags close in order; collects attributes, ids and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", " ".join(self.words))

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def test_the_page_is_well_formed_and_has_its_sections():
    page = Page(render(record()))
    ids = page.values("id")
    assert [i for i in ids if not i.endswith("-title")] == [*SECTIONS, "chart-keys"]
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert links == [f"#{section}" for section in SECTIONS]
    assert len(ids) == len(set(ids))
    assert set(page.values("aria-labelledby")) <= set(ids)


def test_the_page_holds_the_numbers():
    text = Page(render(record())).text
    for number in ("1.000000", "0.500000", "0.333333", "0.750000", "0.700000"):
        assert number in text
    assert "70.0\u202f%" in text and "highest of all epochs" in text
    assert "24 updates" in text and "3:15" in text and "1:05 an epoch" in text
    assert "31 January 2026, 14:05" in text
    assert "opt. lr 0.003" in text and "Held constant: wd 0.01" in text
    assert "dog taken for cat 3 of 58" in text
    assert "88\u202f% · loss 2.25 dog 1.jpg" in text
    assert "loss 6.50 dog , not cat, 100\u202f% dog 2.jpg" in text
    assert "Epoch 0" in text and "cat 60 42" in text and "dog 90 58" in text
    assert "2 classes of 60 (cat) to 90 (dog) training samples" in text
    assert "took at most 20.0\u202fms; 25\u202f% of all" in text
    assert "1 3 1.50\u202fs 500\u202fms 75.0×" in text
    assert "1 file could not be read" in text and "bad.jpg cut short" in text
    assert "Treadle 9.8.7" in text


def test_the_page_loads_nothing_and_forbids_it():
    html = render(record())
    page = Page(html)
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r'="data:[^"]*"', "", html))
    assert all(v.startswith(("data:", "#")) for v in page.values("src") + page.values("href"))
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    (policy,) = [v for v in page.values("content") if "default-src" in v]
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


EVIL = "</script><script>alert(1)</script>]]>\u202e"
QUOTES = "\"'><img src=x onerror=alert(2)>.jpg"


def evil_record() -> RunRecord:
    return replace(
        record(),
        name=EVIL,
        started=QUOTES,
        metric_names=["epoch", "train_loss", "valid_loss", EVIL, "time"],
        config={EVIL: {QUOTES: EVIL}},
        environment={"treadle": QUOTES, EVIL: QUOTES},
        hps={EVIL: [0.1, 0.2], QUOTES: [1.0, 1.0]},
        confusion=Confusion([EVIL, QUOTES], [[40, 2], [3, 55]]),
        confused=[ConfusedExample(QUOTES, EVIL, 0.9, 2.2, QUOTES + "\x00\ud800$title", png())],
        worst=[ConfusedExample(QUOTES, EVIL, 0.9, 2.2, QUOTES, png())],
        seen=[SeenSamples(0, [EVIL, QUOTES], [png(), png()])],
        balance=ClassBalance([EVIL, QUOTES], [3, 4], [5, 6]),
        skipped=[(EVIL, QUOTES)],
    )


def test_everything_that_a_user_named_is_escaped():
    html = render(evil_record())
    page = Page(html)
    n_charts = page.tags.count("figure") - page.tags.count("img")
    assert page.tags.count("script") == n_charts + 1
    assert page.tags.count("img") == 4
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("alert(1)") >= 8 and page.text.count("alert(2)") >= 5
    assert "\x00" not in html and "\u202e" not in html and "$title" in html
    html.encode("utf-8")


def test_a_run_of_many_classes_has_its_matrix_as_a_picture():
    n = 100
    counts = np.eye(n, dtype=int) * 10
    counts[3, 4] = 7
    names = [f"c{i}" for i in range(n)]
    balance = ClassBalance(names, list(range(1, n + 1)), [0] * n)
    confusion = Confusion(names, counts.tolist())
    bare_record = RunRecord("many", "now", NAMES, confusion=confusion, balance=balance)
    page = Page(render(bare_record))
    assert "The 15 largest and the 15 smallest are shown." in page.text
    assert "c99 100 0" in page.text and "c0 1 0" in page.text and "c50 51 0" not in page.text
    assert "c3 taken for c4 7 of 17" in page.text
    (alt,) = page.values("alt")
    assert "100 classes; 99.3 %" in alt
    assert page.tags.count("td") < 150


def test_100_000_updates_stay_small(tmp_path):
    path = write_report(record(epochs=100, updates=1000), tmp_path / "report.html")
    assert path.stat().st_size < 600_000


def bare() -> RunRecord:
    return RunRecord("bare", "yesterday", NAMES)


def variants():
    full = record()
    return {
        "nothing yet": bare(),
        "one epoch": record(epochs=1),
        "no confusion": replace(full, confusion=None, confused=()),
        "nothing confused": replace(
            full, confusion=Confusion(["a", "b"], [[3, 0], [0, 0]]), confused=()
        ),
        "no picture": replace(full, confused=[replace(full.confused[0], image=None)]),
        "no validation": replace(full, rows=[[0, 0.5, None, None, "0:01"]] * 2),
        "no time": replace(full, metric_names=["epoch", "train_loss"], rows=[[0, 0.5], [1, 0.4]]),
        "time in seconds": replace(
            full, metric_names=["epoch", "train_loss", "time"], rows=[[0, 0.5, 2.5]]
        ),
        "diverged": replace(
            full,
            losses=[1.0, math.nan],
            raw_losses=[math.inf, math.nan],
            rows=[[0, math.nan, math.inf, 0.1, "0:01"]] * 2,
        ),
        "table only": replace(full, losses=(), raw_losses=(), hps={}, iters=()),
    }


@pytest.mark.parametrize("name", variants())
def test_runs_of_every_kind_have_a_report(name):
    page = Page(render(variants()[name]))
    assert page.tags.count("h1") == 1
    # A number that is not finite may stand in the table, never in a drawing.
    drawn = [v for _, key, v in page.attributes if key in ("d", "style")]
    assert not [value for value in drawn if re.search(r"nan|inf", value)]


def test_what_is_missing_is_said_or_left_out():
    assert "No epoch has ended yet." in Page(render(bare())).text
    diverged = Page(render(variants()["diverged"]))
    assert "2 updates had a loss that is not a finite number." in diverged.text
    assert "confusion" not in Page(render(variants()["no confusion"])).values("id")
    assert "No sample was taken" in Page(render(variants()["nothing confused"])).text
    assert "no picture" in Page(render(variants()["no picture"])).text


def test_a_report_is_replaced_whole_or_refused_with_a_sentence(tmp_path):
    path = write_report(record(epochs=1), tmp_path / "report.html")
    first = path.read_text("utf-8")
    assert write_report(record(), path).read_text("utf-8") != first
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(DataError, match="does not exist; make it first"):
        write_report(record(), tmp_path / "none" / "report.html")


def test_against_another_run_the_page_begins_with_what_differs():
    other = replace(
        record(epochs=2),
        name="<other>",
        started="2026-02-01T09:00:00",
        config={"opt": {"lr": 0.01}, "size": 28, "wd": 0.1},
    )
    page = Page(render(record(), other))
    assert page.values("id")[:6:2] == ["against", "results", "losses"]
    assert "The other run is <other> of 1 February 2026, 09:00." in page.text
    assert "opt. lr 0.003 0.01 wd – 0.1 3 settings are the same." in page.text
    assert "this run 3 0.333333 0.500000 0.700000 the other 2 0.500000" in page.text
    assert "this run: train this run: valid the other: train the other: valid" in page.text
    same = Page(render(record(), record()))
    assert "All 4 settings are the same." in same.text
    bare_too = Page(render(record(), bare()))
    assert "results" not in bare_too.values("id") and "losses" in bare_too.values("id")
