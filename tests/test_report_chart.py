"""Charts keep what matters of a long series, and their axes have room and round numbers."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.report import chart as chart_module
from treadle.report.axis import Scale, ticks
from treadle.report.chart import Line, chart, thin
from treadle.report.text import duration, esc, flatten, headline, number, seconds


def data(html: str) -> str:
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    return text


anything = st.floats(allow_nan=True, allow_infinity=True, width=32)


@given(ys=st.lists(anything, min_size=1, max_size=600), limit=st.integers(8, 200))
def test_thinning_keeps_ends_extremes_order_and_gaps(ys, limit):
    xs, values = np.arange(len(ys), dtype=float), np.array(ys)
    kept_xs, kept = thin(xs, values, limit)
    assert len(kept) <= max(limit, 8)
    assert (np.diff(kept_xs) > 0).all()
    assert kept_xs[0] == 0 and kept_xs[-1] == len(ys) - 1
    np.testing.assert_array_equal(kept, values[kept_xs.astype(int)])
    finite, kept_finite = values[np.isfinite(values)], kept[np.isfinite(kept)]
    assert len(finite) == 0 or (
        kept_finite.min() == finite.min() and kept_finite.max() == finite.max()
    )
    assert np.isfinite(kept).all() == np.isfinite(values).all()


def test_one_spike_among_a_hundred_thousand_updates_is_drawn_at_its_height():
    ys = np.ones(100_000)
    ys[54_321] = 9.0
    html = chart("", [Line("train", "train", range(100_000), ys)], "updates", "")
    (path,) = re.findall(r'class="line train" d="([^"]*)"', html)
    points = re.findall(r"([\d.]+),([\d.]+)", path)
    heights = [float(y) for _, y in points]
    assert len(points) <= chart_module.MAX_POINTS
    assert sorted(heights)[0] < 50 < 500 < sorted(heights)[1]  # 0 is the top


def test_what_is_not_finite_leaves_a_gap_and_a_lone_point_a_dot():
    ys = [1.0, 2.0, math.nan, 1.5, math.inf, 2.0, 1.0]
    html = chart("", [Line("train", "t", range(7), ys)], "updates", "")
    (path,) = re.findall(r'class="line train" d="([^"]*)"', html)
    assert path.count("M") == 3 and path.count("h0") == 1
    assert not re.search(r'(d|style)="[^"]*(nan|inf)', html)
    assert json.loads(data(html))["curves"][0]["y"] == [1, 2, None, 1.5, None, 2, 1]


@pytest.mark.parametrize("ys", [[math.nan], [0.0], [3.0, 3.0], [-1e-9, 1e12], [1e-30, 1e30]])
def test_odd_series_still_make_a_chart_with_finite_numbers(ys):
    html = chart("x", [Line("train", "x", range(len(ys)), ys, dots=True)], "epoch", "")
    assert not re.search(r'(d|style)="[^"]*(nan|inf)', html)
    json.loads(data(html))
    assert 'class="yt"' in html and 'class="xt"' in html


def test_a_divergence_makes_the_axis_logarithmic():
    calm = [Line("train", "t", range(50), np.linspace(2, 0.5, 50))]
    wild = [Line("train", "t", range(50), [*np.linspace(2, 0.5, 49), 1e6])]
    assert '<span class="log" hidden>' in chart("", calm, "updates", "")
    assert '<span class="log">log scale' in chart("", wild, "updates", "")


@given(lo=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), n=st.integers(2, 8), whole=st.booleans())
def test_ticks_are_few_round_and_inside(lo, span, n, whole):
    scale = Scale(lo, lo + span)
    found = ticks(scale, n, whole)
    assert len(found) <= 3 * n
    slack = 1e-6 * max(span, abs(lo))
    assert all(lo - slack <= value <= lo + span + slack for value, _ in found)
    if whole:
        assert all(value == round(value) for value, _ in found)
    else:
        assert len(found) >= 1


@pytest.mark.parametrize(
    ("lo", "hi", "labels"),
    [
        (0.0, 3.1, ["0", "1", "2", "3"]),
        (0.43, 0.95, ["0.5", "0.6", "0.7", "0.8", "0.9"]),
        (0.0, 3.2e-5, ["0", "1e-5", "2e-5", "3e-5"]),
        (0.0, 41000.0, ["0", "10,000", "20,000", "30,000", "40,000"]),
    ],
)
def test_tick_labels_are_as_a_person_writes_them(lo, hi, labels):
    assert [text for _, text in ticks(Scale(lo, hi), 4)] == labels


def test_labels_are_escaped():
    html = chart("<a>", [Line("train", "<b>", [0], [1.0], dots=True)] * 2, "<c>", '"<d>')
    assert "<a>" not in html and "<c>" not in html and '"<d>' not in html
    assert html.count("&lt;b&gt;") == 4  # two keys of the legend, two heads of the table


HOSTILE = [
    "</script>",
    "<!--<script>",
    "]]>",
    "\u202egpj.exe",
    "\u2028",
    "a\"'&b",
    "\ud800",
    "\x00",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_ends_the_data_that_it_stands_in(name):
    html = chart(name, [Line("train", name, [0], [1.0])] * 2, name, name)
    assert html.count("<script") == html.count("</script>") == 1
    assert not re.search("[<>&]", data(html))
    read = json.loads(data(html))
    expected = re.sub("[\x00\u202e\ud800]", "\ufffd", name)
    assert read["title"] == read["curves"][0]["label"] == expected
    assert not re.search("[\x00\u202e\ud800]", html)


def test_a_band_lies_around_its_curve_with_the_same_gaps():
    ys = [2.0, 3.0, math.nan, 1.0, 2.0]
    low, high = [y - 0.5 for y in ys], [y + 0.5 for y in ys]
    html = chart("", [Line("c0", "a", range(5), ys, low=low, high=high)], "updates", "")
    (path,) = re.findall(r'class="band c0" d="([^"]*)"', html)
    assert path.count("M") == path.count("z") == 2
    (line,) = re.findall(r'class="line c0" d="([^"]*)"', html)
    around = [float(y) for _, y in re.findall(r"([\d.]+),([\d.]+)", path)]
    within = [float(y) for _, y in re.findall(r"([\d.]+),([\d.]+)", line)]
    assert min(around) < min(within) < max(within) < max(around)
    assert "3 (2.5 to 3.5)" in html  # in the table


def test_the_table_has_the_ends_and_what_was_known_between():
    lines = [
        Line("train", "train", range(1, 1001), np.linspace(1, 0, 1000)),
        Line("valid", "valid", [500, 1000], [0.75, 0.25]),
    ]
    html = chart("", lines, "updates", "")
    rows = re.findall(r'<tr><th scope="row">([\d,]+)</th><td>(.*?)</td><td>(.*?)</td></tr>', html)
    assert len(rows) == 11
    assert rows[0] == ("1", "1", "–") and rows[-1] == ("1,000", "0", "0.25")
    assert ("501", "0.75") in [(at, valid) for at, _, valid in rows]


def test_a_zoom_finds_more_points_than_are_drawn():
    ys = np.sin(np.arange(20_000.0))
    html = chart("", [Line("train", "t", range(20_000), ys)], "updates", "")
    (curve,) = json.loads(data(html))["curves"]
    assert chart_module.MAX_POINTS < len(curve["x"]) == len(curve["y"]) <= chart_module.MAX_DETAIL
    np.testing.assert_allclose(curve["y"], ys[curve["x"]], rtol=1e-5)


def test_text_of_numbers_times_and_settings():
    assert number(math.nan) == "nan" and number(0.0) == "0.000000" and number("x") == "x"
    assert headline("error_rate", 0.0625) == "6.2\u202f%"
    assert headline("perplexity", 12345.6) == "1.235e4" and headline("loss", None) == "–"
    assert seconds("1:02:03") == 3723 and duration(59.6) == "1:00" and duration(0.04) == "0.0 s"
    assert esc("a\x00b\ud800'") == "a\ufffdb\ufffd&#x27;"
    assert flatten({"a": {"b": {"c": 1}}, "d": []}) == [("a.b.c", "1"), ("d", "")]
