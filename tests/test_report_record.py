"""`record.json` brings back the record that was written, or says what is wrong with it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from test_report_html import evil_record, record
from treadle.errors import DataError
from treadle.report.html import render
from treadle.run import RunRecord, read_record, write_record
from treadle.run.record_file import RECORD

BARE = RunRecord("bare", "now", ["epoch"])


@pytest.mark.parametrize("written", [record(), evil_record(), BARE], ids=["full", "evil", "bare"])
def test_what_was_written_comes_back(tmp_path, written):
    write_record(tmp_path, written)
    assert render(read_record(tmp_path)) == render(written)
    assert [file.name for file in tmp_path.iterdir()] == [RECORD]


def test_numbers_that_are_not_finite_come_back(tmp_path):
    broken = replace(
        record(epochs=1),
        losses=[1.0, math.nan],
        raw_losses=[math.inf, -math.inf],
        rows=[[0, math.nan, None, 0.5, 1.5]],
        hps={"lr": [0.1, math.nan]},
    )
    write_record(tmp_path, broken)
    back = read_record(tmp_path)
    assert back.losses[0] == 1 and math.isnan(back.losses[1])
    assert back.raw_losses == [math.inf, -math.inf]
    assert math.isnan(back.rows[0][1]) and back.rows[0][2] is None
    assert back.hps["lr"][0] == 0.1 and math.isnan(back.hps["lr"][1])
    json.loads((tmp_path / RECORD).read_text("utf-8"), parse_constant=lambda name: 1 / 0)


def test_no_record_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"There is no record\.json .* give the folder of a run"):
        read_record(tmp_path)


def damaged():
    whole = {"name": "a", "started": "b", "metric_names": ["epoch"], "rows": [[0]], "losses": []}
    whole |= {"raw_losses": [], "hps": {}, "confused": [], "worst": [], "seen": [], "skipped": []}
    example = {"actual": "a", "predicted": "b", "probability": 1, "loss": 1, "file_name": "c"}
    return {
        "no JSON": "{",
        "no object": "[]",
        "empty": "{}",
        "a name too many": json.dumps(whole | {"surprise": 1}),
        "a row too long": json.dumps(whole | {"rows": [[0, 1]]}),
        "text for a loss": json.dumps(whole | {"losses": ["high"]}),
        "no base64": json.dumps(whole | {"worst": [example | {"image": "<svg>"}]}),
        "no PNG": json.dumps(whole | {"worst": [example | {"image": "PHN2Zz4="}]}),
        "no UTF-8": b"\xff\xfe",
    }


@pytest.mark.parametrize("name", damaged())
def test_a_damaged_record_is_a_sentence(tmp_path, name):
    text = damaged()[name]
    (tmp_path / RECORD).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"record\.json is not the record of a run"):
        read_record(tmp_path)
