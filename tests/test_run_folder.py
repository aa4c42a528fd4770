"""Run folders are new, files in them are whole, and what the system refuses is a sentence."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treadle.errors import DataError, UsageError
from treadle.run import (
    Confusion,
    RunRecord,
    environment,
    new_run_folder,
    write_history,
    write_json,
    write_text,
)


def test_a_run_folder_is_named_by_date_time_and_name(tmp_path):
    folder = new_run_folder("resnet18 / lr=1e-3", root=tmp_path / "deep" / "runs")
    assert folder.is_dir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-resnet18-lr=1e-3", folder.name)


def test_runs_that_start_together_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_folder("x", root=tmp_path), range(24)))
    assert len(set(folders)) == 24


@given(name=st.text(max_size=80))
def test_no_name_leads_out_of_the_root(tmp_path_factory, name):
    root = tmp_path_factory.mktemp("runs")
    try:
        folder = new_run_folder(name, root=root)
    except UsageError:
        assert not re.search(r"\w", name)
    else:
        assert folder.parent == root and folder.is_dir()


def test_out_is_taken_as_it_stands_if_new_or_empty(tmp_path):
    out = tmp_path / "a" / "b"
    assert new_run_folder("ignored", out=out) == out
    assert new_run_folder("ignored", out=out) == out
    (out / "history.csv").write_text("old")
    with pytest.raises(DataError, match=r"not empty \(it holds history.csv\); give a new"):
        new_run_folder("ignored", out=out)


def test_a_file_in_the_way_is_named(tmp_path):
    blocker = tmp_path / "runs"
    blocker.write_text("")
    for make in (
        lambda: new_run_folder("x", root=blocker),
        lambda: new_run_folder("x", out=blocker),
        lambda: new_run_folder("x", out=blocker / "deep"),
        lambda: write_text(blocker / "notes.txt", ""),
    ):
        with pytest.raises(DataError, match=re.escape(f"{blocker} is a file, not a folder")):
            make()


def refuse_with(error):
    def refuse(*args, **kwargs):
        raise error

    return refuse


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        (PermissionError(13, "Permission denied"), "may not write there; choose another place"),
        (OSError(28, "No space left on device"), "No space left on device; make room"),
    ],
)
def test_what_the_system_refuses_is_a_sentence(tmp_path, monkeypatch, error, mend):
    monkeypatch.setattr(Path, "mkdir", refuse_with(error))
    with pytest.raises(DataError, match=f"Cannot make the run folder .*{mend}"):
        new_run_folder("x", root=tmp_path)


def test_a_missing_folder_and_a_folder_in_the_way_of_a_file(tmp_path):
    with pytest.raises(DataError, match="does not exist; make it first"):
        write_text(tmp_path / "none" / "a.txt", "")
    (tmp_path / "taken").mkdir()
    with pytest.raises(DataError, match="a folder of that name is in the way"):
        write_text(tmp_path / "taken", "")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, step):
    path = write_text(tmp_path / "config.json", "old")
    owner = os if step == "fsync" else Path
    monkeypatch.setattr(owner, step, refuse_with(OSError(28, "No space left on device")))
    with pytest.raises(DataError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_a_file_is_renamed_into_place_only_when_it_is_complete(tmp_path, monkeypatch):
    seen = []
    real = Path.replace

    def replace(beside, path):
        seen.append((beside.parent, beside.read_text(), Path(path).exists()))
        return real(beside, path)

    monkeypatch.setattr(Path, "replace", replace)
    write_text(tmp_path / "a.txt", "whole")
    assert seen == [(tmp_path, "whole", False)]
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_json_holds_what_settings_are_made_of(tmp_path):
    @dataclass
    class Size:
        width: int

    settings = {
        "path": Path("a") / "b",
        "size": Size(3),
        "lr": np.float32(0.5),
        "n": torch.tensor(7),
        "moms": (0.95, 0.85),
        "tags": {"b", "a"},
        "worst": [math.inf, -math.inf, math.nan],
        1: None,
        "name": "größe",
    }
    text = write_json(tmp_path / "c.json", settings).read_text("utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "path": str(Path("a") / "b"),
        "size": {"width": 3},
        "lr": 0.5,
        "n": 7,
        "moms": [0.95, 0.85],
        "tags": ["a", "b"],
        "worst": ["inf", "-inf", "nan"],
        "1": None,
        "name": "größe",
    }
    assert "größe" in text


def test_json_names_the_place_of_what_it_cannot_hold(tmp_path):
    with pytest.raises(UsageError, match=r"value.opt.betas\[1\] is a function"):
        write_json(tmp_path / "c.json", {"opt": {"betas": [0.9, lambda: 0]}})
    with pytest.raises(UsageError, match="is a Tensor"):
        write_json(tmp_path / "c.json", {"w": torch.zeros(2)})
    assert not list(tmp_path.iterdir())


def test_history_keeps_every_digit_and_one_line_an_epoch(tmp_path):
    names = ["epoch", "train_loss", "valid_loss", "time"]
    rows = [[0, 0.1 + 0.2, None, "0:04"], [1, np.float64(1e-300), math.nan, "0:05"]]
    path = write_history(tmp_path / "history.csv", names, rows)
    assert path.read_text() == (
        "epoch,train_loss,valid_loss,time\n0,0.30000000000000004,,0:04\n1,1e-300,nan,0:05\n"
    )


def test_history_is_safe_to_open_in_a_spreadsheet(tmp_path):
    rows = [["=cmd()", "two\r\nlines", -0.5], ["+1", 'a "b", c', "@x"]]
    path = write_history(tmp_path / "h.csv", ["=evil", "b", "c"], rows)
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["'=evil", "b", "c"],
            ["'=cmd()", "two lines", "-0.5"],
            ["'+1", 'a "b", c', "'@x"],
        ]


def test_environment_says_what_it_ran_on(tmp_path):
    found = environment("cpu")
    assert found["torch"] == torch.__version__ and found["numpy"] == np.__version__
    assert 1 <= found["cpu_count"] <= os.cpu_count()
    assert str(found["device"]).startswith("cpu (")
    assert json.loads(write_json(tmp_path / "e.json", environment()).read_text())


def test_a_record_refuses_what_does_not_fit():
    with pytest.raises(UsageError, match="Row 1 of the run 'x' has 1 values for 2 names"):
        RunRecord("x", "2026-01-31", ["epoch", "train_loss"], [[0, 1.0], [1]])
    with pytest.raises(UsageError, match="give 2 rows of 2 counts"):
        Confusion(["a", "b"], [[1, 2]])
