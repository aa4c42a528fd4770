"""The report is one well-formed page that holds the run's numbers and loads nothing."""

from __future__ import annotations

import io
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from treadle.errors import DataError
from treadle.report import write_report
from treadle.report.html import render
from treadle.run import ConfusedExample, Confusion, RunRecord

NAMES = ["epoch", "train_loss", "valid_loss", "accuracy", "time"]
SECTIONS = ["loss", "epochs", "metrics", "schedule", "confusion", "confused"]
SECTIONS += ["configuration", "environment"]
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
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", " ".join(self.words))

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def test_the_page_is_well_formed_and_has_its_sections():
    page = Page(render(record()))
    ids = page.values("id")
    assert [i for i in ids if not i.endswith("-title")] == SECTIONS
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
    assert "Treadle 9.8.7" in text


def test_the_page_loads_nothing_and_forbids_it():
    html = render(record())
    page = Page(html)
    assert not re.search(r"https?:|//|@import|url\(", html)
    assert all(value.startswith("data:") for value in page.values("src") + page.values("href"))
    assert "script" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    (policy,) = [v for v in page.values("content") if "default-src" in v]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


EVIL = "<script>alert(1)</script>"
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
    )


def test_everything_that_a_user_named_is_escaped():
    html = render(evil_record())
    page = Page(html)
    assert "script" not in page.tags
    assert page.tags.count("img") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.text.count("alert(1)") >= 8 and page.text.count("alert(2)") >= 5
    assert "\x00" not in html and "$title" in html
    html.encode("utf-8")


def test_a_run_of_many_classes_has_its_matrix_as_a_picture():
    n = 100
    counts = np.eye(n, dtype=int) * 10
    counts[3, 4] = 7
    confusion = Confusion([f"c{i}" for i in range(n)], counts.tolist())
    page = Page(render(replace(record(), confusion=confusion, confused=[])))
    assert "c3 taken for c4 7 of 17" in page.text
    (alt,) = page.values("alt")
    assert "100 classes; 99.3 %" in alt
    assert page.tags.count("td") < 100


def test_100_000_updates_stay_small(tmp_path):
    path = write_report(record(epochs=100, updates=1000), tmp_path / "report.html")
    assert path.stat().st_size < 400_000


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


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture
def browse(tmp_path):
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")

    def browse(*flags: str) -> str:
        quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        quiet += ["--disable-background-networking", "--disable-component-update"]
        quiet += ["--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run([CHROMIUM, *quiet, *flags], capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode("utf-8")

    return browse


def test_a_browser_finds_the_sections_and_runs_nothing(tmp_path, browse):
    path = write_report(evil_record(), tmp_path / "report.html")
    page = Page(browse("--dump-dom", path.as_uri()))
    assert set(SECTIONS) <= set(page.values("id"))
    assert "script" not in page.tags


@pytest.mark.parametrize(("scheme", "is_page"), [(1, lambda v: v > 240), (0, lambda v: v < 40)])
def test_a_browser_draws_it_light_and_dark_and_narrow(tmp_path, browse, scheme, is_page):
    path = write_report(record(), tmp_path / "report.html")
    shot = tmp_path / "shot.png"
    browse(
        "--hide-scrollbars",
        f"--blink-settings=preferredColorScheme={scheme}",
        "--window-size=400,2400",
        f"--screenshot={shot}",
        path.as_uri(),
    )
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert is_page(pixels[0, 0].max()) or is_page(pixels[0, 0].min())
    changed = (pixels != pixels[0, 0]).any(axis=2)
    assert 0.02 < changed.mean() < 0.5
    assert not changed[:, -8:].any()  # nothing runs over the edge of a phone
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
