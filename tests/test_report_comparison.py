"""The page of a comparison has the table, the verdict and the curves of all rows over the seeds."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from test_report_html import Page
from treadle.errors import DataError
from treadle.report import write_comparison
from treadle.report.comparison import render_comparison
from treadle.study.comparison import Comparison, Row, Run


def run(seed: int, level: float, n: int = 40, epochs: int = 4, error: str | None = None) -> Run:
    """Losses fall from 2 to `level`, a little higher with each seed."""
    losses = np.linspace(2, level, n) + 0.1 * seed
    ends = [n * (e + 1) // epochs - 1 for e in range(epochs)]
    return Run(
        seed,
        error,
        losses=losses.tolist(),
        raw_losses=losses.tolist(),
        seconds=(np.arange(1, n + 1) * (0.1 + 0.01 * seed)).tolist(),
        epochs=[
            {
                "epoch": e,
                "train_loss": float(losses[end]),
                "valid_loss": float(losses[end]),
                "accuracy": 1 - float(losses[end]) / 3,
                "seconds": 1.0,
            }
            for e, end in enumerate(ends)
        ],
        hypers={"lr": np.linspace(0, level, n).tolist(), "wd": [0.01] * n},
        rate_found=level if seed == 0 else None,
        total_seconds=5.0,
        steps_per_second=10.0,
    )


def comparison(seeds: int = 3) -> Comparison:
    rows = [
        Row(name, f"{name}_step, lr={level}", [run(seed, level) for seed in range(seeds)])
        for name, level in (("sgd", 1.0), ("<adam>", 0.25), ("rmsprop", 0.5))
    ]
    return Comparison(
        "Optimizers on digits",
        {"data": "digits", "epochs": 4},
        ["train_loss", "valid_loss", "accuracy"],
        rows,
        list(range(seeds)),
        {"treadle": "9.8.7"},
        "2026-01-31T14:05:09",
    )


def charts(html: str) -> list[dict]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    return [json.loads(text) for text in found]


def test_the_page_has_its_sections_verdict_and_table():
    found = comparison()
    page = Page(render_comparison(found))
    ids = [i for i in page.values("id") if not i.endswith("-title")]
    assert ids[:-1] == (
        "results updates seconds epochs schedules contestants configuration environment".split()
    )
    for sentence in found.verdict():
        assert sentence in page.text
    summary = found["<adam>"].summary("accuracy")
    assert f"{summary.mean:.4f} ± {summary.spread:.4f}" in page.text
    order = [page.text.index(f"{name} 3 ") for name in ("<adam>", "rmsprop", "sgd")]
    assert order == sorted(order)  # best first
    assert "rates found: 0.25" in page.text
    assert page.tags.count("script") == page.tags.count("figure") + 1


def test_curves_are_the_mean_with_the_lowest_and_the_highest_of_the_seeds():
    updates, seconds, accuracy, *_ = charts(render_comparison(comparison()))
    sgd = updates["curves"][0]
    expected = np.linspace(2, 1, 40)
    np.testing.assert_allclose(sgd["y"], expected + 0.1, rtol=1e-5)
    np.testing.assert_allclose(sgd["low"], expected, rtol=1e-5)
    np.testing.assert_allclose(sgd["high"], expected + 0.2, rtol=1e-5)
    assert sgd["x"] == list(range(1, 41))
    # Against time: only as long as all seeds have values, read between their updates.
    timed = seconds["curves"][0]
    assert timed["x"][0] == 0.12 and timed["x"][-1] == 4
    at = np.array(timed["x"])
    each = [
        np.interp(at, np.arange(1, 41) * (0.1 + 0.01 * s), expected + 0.1 * s) for s in range(3)
    ]
    np.testing.assert_allclose(timed["y"], np.mean(each, axis=0), rtol=1e-4)
    assert accuracy["title"] == "accuracy" and accuracy["curves"][0]["dots"]
    assert accuracy["curves"][0]["x"] == [0, 1, 2, 3]


def test_only_what_moves_has_a_schedule():
    titles = [chart["title"] for chart in charts(render_comparison(comparison()))]
    assert "lr" in titles and "wd" not in titles


def test_a_row_that_failed_is_told_and_has_no_part_in_the_mean():
    found = comparison()
    broken = run(9, 3.0, n=10, epochs=1, error="the loss was not finite at update 10")
    rows = [Row("sgd", "d", [*found["sgd"].runs[:2], broken]), Row("lost", "d", [broken])]
    page_text = render_comparison(Comparison("t", {}, found.metric_names, rows, [0, 1, 9]))
    text = Page(page_text).text
    assert "sgd 2 of 3" in text and "lost 0 of 1 – –" in text
    assert "the loss was not finite at update 10" in text
    sgd, lost = charts(page_text)[0]["curves"]
    np.testing.assert_allclose(sgd["y"][0], 2.05, rtol=1e-5)
    assert len(lost["x"]) == 10 and lost["low"] == []


@pytest.mark.parametrize(
    "found",
    [
        Comparison("none", {}, ["valid_loss"], [], []),
        Comparison("empty row", {}, ["valid_loss"], [Row("a", "d")], [0]),
        Comparison("bare run", {}, ["valid_loss"], [Row("a", "d", [Run(0)])], [0]),
        Comparison(
            "not finite",
            {},
            ["valid_loss"],
            [Row("a", "d", [Run(0, "nan", [1.0, math.nan], [1.0, math.nan], [0.1, 0.2])])],
            [0],
        ),
    ],
    ids=lambda found: found.title,
)
def test_comparisons_of_every_kind_have_a_page(found):
    page = Page(render_comparison(found))
    drawn = [v for _, key, v in page.attributes if key in ("d", "style")]
    assert not [value for value in drawn if re.search(r"nan|inf", value)]


def test_many_rows_have_colours_and_dashes_of_their_own():
    rows = [Row(f"r{i}", "d", [run(0, 0.5)]) for i in range(10)]
    html = render_comparison(Comparison("many", {}, ["valid_loss"], rows, [0]))
    kinds = [curve["kind"] for curve in charts(html)[0]["curves"]]
    assert len(set(kinds)) == 10 and kinds[8:] == ["c0 dashed", "c1 dashed"]


def test_long_runs_of_many_seeds_stay_small(tmp_path):
    rows = [Row(f"r{i}", "d", [run(s, 0.5, n=100_000) for s in range(3)]) for i in range(2)]
    path = write_comparison(Comparison("long", {}, ["valid_loss"], rows, [0, 1, 2]), tmp_path / "x")
    assert path.stat().st_size < 900_000


def test_a_page_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match="does not exist; make it first"):
        write_comparison(comparison(), tmp_path / "none" / "report.html")
