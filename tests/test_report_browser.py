"""The reports in a real browser: values, zoom, legend, keys, themes, a phone, and no request."""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import CHROMIUM, Browser
from test_report_comparison import comparison
from test_report_html import EVIL, Page, evil_record, record
from treadle.report import write_comparison, write_report
from treadle.report.chart import Line, chart
from treadle.report.page import Section, page

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path"
)

PLOT = "document.querySelector('.plot')"
AUDIT = Path(__file__).with_name("audit.js").read_text("utf-8").rstrip()
TIP = "document.querySelector('.tip')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The reports that the tests look at, by name."""
    folder = tmp_path_factory.mktemp("pages")
    run, other = record(epochs=6, updates=50), record(epochs=4, updates=50)
    return {
        "run": write_report(run, folder / "run.html"),
        "against": write_report(run, folder / "against.html", other),
        "comparison": write_comparison(comparison(), folder / "comparison.html"),
        "evil": write_report(evil_record(), folder / "evil.html"),
        "long": write_report(record(epochs=100, updates=1000), folder / "long.html"),
    }


@pytest.fixture(autouse=True)
def quiet(browser):
    """Whatever a test does, nothing leaves the page and nothing is complained of."""
    yield
    browser.settle()
    assert browser.requests == []
    assert browser.complaints == []


def tip(browser) -> str:
    hidden, text = browser.ask(f"[{TIP}.hidden, {TIP}.innerText]")
    return "" if hidden else " ".join(text.split())


def chart_state(browser) -> dict:
    """What the first chart shows: its paths as lists of points, and its labels with their place."""
    return browser.ask(
        "(() => { const f = document.querySelector('figure.chart');"
        " const style = (e) => [e.textContent, e.style.left || e.style.bottom];"
        " const points = (p) => (p.getAttribute('d').match(/[\\d.]+,[\\d.]+/g) ?? [])"
        "   .map((q) => q.split(',').map(Number));"
        " return {lines: [...f.querySelectorAll('path.line')].map(points),"
        "   dots: [...f.querySelectorAll('path.dot')].map(points),"
        "   labels: [...f.querySelectorAll('.xt, .yt')].map(style).sort()}; })()"
    )


def test_hover_shows_the_values_that_were_recorded(browser, pages):
    browser.open(pages["run"])
    run = record(epochs=6, updates=50)
    left, top, width, height = browser.box(PLOT)
    assert tip(browser) == ""
    browser.mouse("Moved", left + width * 99 / 299, top + height / 2)  # the 100th of 300
    assert tip(browser) == (
        f"update 100 each update {run.raw_losses[99]:.4g} train, smoothed {run.losses[99]:.4g} "
        f"valid {run.rows[1][2]:.4g}"
    )
    browser.mouse("Moved", left + width * 74 / 299, top + height / 2)
    assert tip(browser).startswith("update 75 ") and "valid" not in tip(browser)
    assert browser.ask("[...document.querySelectorAll('.spot')].map(s => s.hidden)")[:3] == [
        False,
        False,
        True,
    ]
    browser.mouse("Moved", 5, 5)
    assert tip(browser) == ""


def test_a_key_of_the_legend_hides_its_curve_and_shows_it_again(browser, pages):
    browser.open(pages["run"])
    before = chart_state(browser)
    key = "document.querySelectorAll('.legend .key')[0]"
    left, top, width, height = browser.box(key)
    browser.click(left + width / 2, top + height / 2)
    hidden = chart_state(browser)
    assert browser.ask(f"{key}.getAttribute('aria-pressed')") == "false"
    assert hidden["lines"][0] == [] and len(hidden["lines"][1]) == len(before["lines"][1])
    left, top, width, height = browser.box(PLOT)
    browser.mouse("Moved", left + width / 2, top + height / 2)
    assert "train, smoothed" in tip(browser) and "each update" not in tip(browser)
    browser.ask(f"{key}.focus()")
    browser.key("Enter")
    assert browser.ask(f"{key}.getAttribute('aria-pressed')") == "true"
    assert_same_drawing(chart_state(browser), before)


def test_a_row_of_a_comparison_comes_and_goes_in_all_charts(browser, pages):
    browser.open(pages["comparison"])
    pressed = (
        "[...document.querySelectorAll('.legend .key.c1')].map(k => k.getAttribute('aria-pressed'))"
    )
    drawn = "[...document.querySelectorAll('path.c1')].map(p => p.getAttribute('d') !== '')"
    assert set(browser.ask(drawn)) == {True}
    browser.ask("document.querySelector('.legend .key.c1').click()")
    assert set(browser.ask(drawn)) == {False} and set(browser.ask(pressed)) == {"false"}
    browser.ask("[...document.querySelectorAll('.legend .key.c1')].at(-1).click()")
    assert set(browser.ask(drawn)) == {True} and set(browser.ask(pressed)) == {"true"}


def test_the_last_curve_stays(browser, pages):
    browser.open(pages["run"])
    keys = "[...document.querySelector('.legend').children]"
    browser.ask(f"{keys}.forEach(k => k.click())")
    pressed = browser.ask(f"{keys}.map(k => k.getAttribute('aria-pressed'))")
    assert pressed == ["false", "false", "true"]


def assert_same_drawing(a: dict, b: dict) -> None:
    """Points agree to a tenth of a thousandth of the width, the numbers on the axes entirely."""
    for kind in ("lines", "dots"):
        assert [len(points) for points in a[kind]] == [len(points) for points in b[kind]]
        for mine, other in zip(a[kind], b[kind], strict=True):
            np.testing.assert_allclose(mine, other, atol=0.11)
    assert a["labels"] == b["labels"]


SERIES = {
    "from zero": np.linspace(3, 0.5, 30),
    "far from zero": np.linspace(0.98, 0.91, 30),
    "below zero": np.linspace(-4, 2, 30),
    "diverged": np.geomspace(0.5, 1e6, 30) ** 2,
    "a decade or two": [*np.linspace(1, 2, 29), 60.0],
    "constant": np.full(30, 0.25),
    "tiny": np.linspace(1e-6, 3e-5, 30),
    "huge": np.linspace(1e6, 7e6, 30),
    "with gaps": [*np.linspace(1, 2, 15), math.nan, math.inf, *np.linspace(2, 1, 13)],
    "nothing": [math.nan] * 30,
}


@pytest.mark.parametrize("name", SERIES)
def test_the_script_draws_as_python_does(browser, tmp_path, name):
    """A chart of two curves of which one is hidden is that of the other alone."""
    one = Line("train", "one", range(30), SERIES[name], dots=True)
    band = Line("c0", "band", range(30), range(30), low=range(-5, 25), high=range(5, 35))
    files = []
    for lines in ([one], [one, band]):
        body = chart("t", lines, "updates", "d", marks=[10, 20], n_ticks=6)
        html = page("t", "k", "s", "", [Section("a", "A", body)], "w")
        files.append(tmp_path / f"{len(lines)}.html")
        files[-1].write_text(html, "utf-8")
    alone = chart_state(browser.open(files[0]))
    browser.open(files[1])
    browser.ask("document.querySelectorAll('.legend .key')[1].click()")
    both = chart_state(browser)
    assert both["lines"].pop() == []
    assert browser.ask("document.querySelector('path.band').getAttribute('d')") == ""
    assert_same_drawing(both, alone)


@pytest.mark.parametrize("how", ["button", "double click", "Escape"])
def test_a_drag_zooms_and_a_reset_draws_what_was_there(browser, pages, how):
    """Python drew it first and the script after the reset: so the two agree."""
    browser.open(pages["run"])
    before = chart_state(browser)
    left, top, width, height = browser.box(PLOT)
    middle = top + height / 2
    assert browser.ask("document.querySelector('.reset').hidden")
    browser.drag((left + width / 3, middle), (left + width * 2 / 3, middle + 9))
    zoomed = chart_state(browser)
    numbers = [int(text) for text, place in zoomed["labels"] if "." not in text]
    assert min(numbers) > 100 and max(numbers) < 202
    assert zoomed["lines"][0] != before["lines"][0]
    ends = [f"{PLOT}.getAttribute('aria-{end}')" for end in ("valuemin", "valuemax")]
    low, high = (float(browser.ask(end)) for end in ends)
    assert (low, high) == pytest.approx((100.7, 200.3), abs=1)
    browser.mouse("Moved", left + width / 2, middle)
    assert 148 <= int(tip(browser).split()[1]) <= 153
    if how == "button":
        left, top, width, height = browser.box("document.querySelector('.reset')")
        browser.click(left + width / 2, top + height / 2)
    elif how == "double click":
        browser.ask(f"{PLOT}.dispatchEvent(new MouseEvent('dblclick'))")
    else:
        browser.ask(f"{PLOT}.focus()")
        browser.key("Escape")
    assert browser.ask("document.querySelector('.reset').hidden")
    assert_same_drawing(chart_state(browser), before)


def test_a_zoom_into_100_000_updates_shows_each_of_many_points(browser, pages):
    browser.open(pages["long"])
    left, top, width, _ = browser.box(PLOT)
    share = len(chart_state(browser)["lines"][0])
    browser.drag((left + width * 0.5, top + 50), (left + width * 0.6, top + 60))
    shown = len(chart_state(browser)["lines"][0])
    assert shown > share / 10 * 2.5  # of a tenth of the width, more than a tenth of what was drawn


def test_numbers_below_a_narrow_chart_keep_apart(browser, pages):
    edges = (
        "[...document.querySelector('.plot').querySelectorAll('.xt')]"
        ".map(t => t.getBoundingClientRect()).map(b => [b.left, b.right])"
    )
    for width, most in ((400, 5), (900, 7)):
        browser.open(pages["long"], width=width)
        labels = sorted(browser.ask(edges))
        assert 2 <= len(labels) <= most
        assert all(a[1] + 4 < b[0] for a, b in itertools.pairwise(labels))


def test_a_finger_reads_zooms_and_scrolls(browser, pages):
    browser.open(pages["run"], width=400, height=800)
    left, top, width, height = browser.box(PLOT)
    x, y = left + width / 2, top + height / 2
    browser.touch((x, y))
    assert tip(browser).startswith("update 150 ")
    scrolled = browser.ask("scrollY")
    browser.touch(*((left + width * share, y) for share in (0.3, 0.4, 0.5, 0.6)))
    assert browser.ask("[document.querySelector('.reset').hidden, scrollY]") == [False, scrolled]
    browser.ask("document.querySelector('.reset').click()")
    browser.touch(*((x, y - 20 * i) for i in range(6)))
    assert browser.ask("document.querySelector('.reset').hidden")
    assert browser.ask("scrollY") > scrolled


def test_keys_read_values_and_zoom(browser, pages):
    browser.open(pages["run"])

    def say(key: str) -> str:
        browser.key(key)
        return browser.ask(f"{PLOT}.getAttribute('aria-valuetext')")

    browser.ask("document.querySelector('nav a:last-child').focus()")
    for _ in range(4):  # the three keys of the legend, then the chart
        browser.key("Tab")
    assert browser.ask(f"document.activeElement === {PLOT}")
    assert browser.ask(f"getComputedStyle({PLOT}).outlineStyle") == "solid"
    assert say("Home").startswith("update 1, each update ")
    assert say("ArrowRight").startswith("update 4, ")
    assert say("ArrowLeft").startswith("update 1, ")
    assert say("ArrowLeft").startswith("update 1, ")
    assert say("End").startswith("update 300, ") and "valid 0.25" in say("End")
    seen = [say("ArrowLeft") for _ in range(20)]
    assert any(text.startswith("update 250, ") and "valid" in text for text in seen)
    assert say("PageUp").startswith("update 250, ")  # no dot is passed over
    assert say("PageUp").startswith("update 280, ")
    before = chart_state(browser)
    browser.key("+")
    assert len(chart_state(browser)["lines"][0]) < len(before["lines"][0])
    browser.key("-")
    assert_same_drawing(chart_state(browser), before)
    assert tip(browser) != ""
    browser.key("Escape")
    assert tip(browser) == ""


@pytest.mark.parametrize("name", ["run", "against", "comparison", "evil", "long"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(browser, pages, name, scheme):
    browser.open(pages[name], scheme=scheme)
    browser.ask("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    left, top, width, height = browser.box(PLOT)
    browser.mouse("Moved", left + width / 2, top + height / 2)
    faint = browser.ask(f"{AUDIT}.faint()")
    assert faint == []
    behind = browser.ask("getComputedStyle(document.body).backgroundColor")
    red = int(behind.split("(")[1].split(",")[0])
    assert red > 240 if scheme == "light" else red < 40


@pytest.mark.parametrize("name", ["run", "against", "comparison", "evil", "long"])
@pytest.mark.parametrize("width", [320, 400])
def test_a_phone_shows_all_without_scrolling_sideways(browser, pages, name, width):
    browser.open(pages[name], width=width, height=800, scheme="dark")
    browser.ask("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    left, top, plot_width, height = browser.box(PLOT)
    for share in (0.02, 0.5, 0.98):  # the values stay within the page too
        browser.mouse("Moved", left + plot_width * share, top + height / 2)
        edges = "({left, right}) => [left, right]"
        box = browser.ask(f"({edges})({TIP}.getBoundingClientRect())")
        assert 0 <= box[0] < box[1] <= width
    assert browser.ask("[document.documentElement.scrollWidth, innerWidth]") == [width, width]


@pytest.mark.parametrize("name", ["run", "against", "comparison"])
def test_everything_has_a_name_and_a_place_for_who_does_not_see_it(browser, pages, name):
    browser.open(pages[name])
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    roles = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    for role, text in roles:
        if role in ("button", "link", "slider", "region", "image", "heading", "navigation"):
            assert text.strip(), role
    n_charts = browser.ask("document.querySelectorAll('figure.chart').length")
    assert sum(role == "slider" for role, _ in roles) == n_charts
    assert browser.ask("document.querySelectorAll('figure.chart details table').length") == n_charts
    assert browser.ask(f"{AUDIT}.problems()") == []


def test_100_000_updates_open_in_two_seconds(browser, pages):
    start = time.perf_counter()
    browser.open(pages["long"])
    seconds = time.perf_counter() - start
    assert browser.ask("document.querySelectorAll('[role=slider]').length") > 3
    assert seconds < 2


def test_hostile_names_are_only_text(browser, pages):
    browser.open(pages["evil"])
    assert browser.ask("document.scripts.length") == browser.ask(
        "document.querySelectorAll('figure.chart').length + 1"
    )
    charts = "document.querySelectorAll('figure.chart')"
    named = json.dumps(EVIL.replace("\u202e", "\ufffd"))
    index = browser.ask(
        f"[...{charts}].findIndex(f => f.querySelector('b')?.textContent === {named})"
    )
    assert index >= 0
    plot = f"{charts}[{index}].querySelector('.plot')"
    left, top, width, height = browser.box(plot)
    browser.mouse("Moved", left + width / 2, top + height / 2)
    assert browser.ask(f"{plot}.querySelector('.tip').innerText.includes({named})")
    assert browser.ask("document.querySelectorAll('.tip script, .tip img').length") == 0


def test_the_policy_stops_any_other_script_and_any_request(browser, pages, tmp_path):
    """What would happen if something had slipped in after all."""
    html = pages["run"].read_text("utf-8")
    slipped = '<script>document.title = "changed"</script><img src="https://localhost:9/x.png">'
    file = tmp_path / "slipped.html"
    file.write_text(html.replace("</body>", f"{slipped}</body>"), "utf-8")
    browser.open(file)
    assert browser.ask("document.title") == "digits · Treadle"
    refused = [text for text in browser.complaints if "Content Security Policy" in text]
    assert len(refused) == 2
    browser.requests.clear()  # one is announced before it is refused
    browser.complaints.clear()


def test_without_script_the_page_is_whole(browser, pages):
    browser.open(pages["run"], scripts=False)
    shot = browser.screenshot(pages["run"].with_suffix(".png"))
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB"))
    blue = (abs(pixels.astype(int) - (31, 111, 174)).sum(axis=2) < 30).sum()
    assert blue > 1000  # curves are there
    static = Page(pages["run"].read_text("utf-8"))
    assert "slider" not in static.values("role") and "img" in static.values("role")
