"""The table of a fit as a file: whole at any time, exact, and safe to open."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import tiny_learner
from treadle.callbacks import CSVLogger
from treadle.errors import DataError
from treadle.loop import Callback
from treadle.metrics import AvgMetric, accuracy, mae


def read(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_the_file_is_the_recorders_table(tmp_path):
    learn = tiny_learner(metrics=accuracy, path=tmp_path, cbs=CSVLogger())
    learn.fit(3)
    header, *rows = read(tmp_path / "history.csv")
    assert header == learn.recorder.metric_names
    assert [[float(cell) for cell in row] for row in rows] == learn.recorder.rows
    assert [row[0] for row in rows] == ["0", "1", "2"]


def test_a_fit_replaces_the_file_or_appends_to_it(tmp_path):
    def epochs():
        return [row[0] for row in read(tmp_path / "deep" / "log.csv")]

    learn = tiny_learner(path=tmp_path)
    learn.fit(2, cbs=CSVLogger("deep/log.csv"))
    learn.fit(1, cbs=CSVLogger("deep/log.csv"))
    assert epochs() == ["epoch", "0"]
    first = (tmp_path / "deep" / "log.csv").read_text()
    for _ in range(2):
        learn.fit(2, cbs=CSVLogger("deep/log.csv", append=True))
    assert epochs() == ["epoch", "0", "0", "1", "0", "1"]
    assert (tmp_path / "deep" / "log.csv").read_text().startswith(first)


def test_appending_to_nothing_starts_the_file(tmp_path):
    learn = tiny_learner(path=tmp_path, cbs=CSVLogger(append=True))
    learn.fit(1)
    (tmp_path / "history.csv").write_text("")
    learn.fit(1)
    assert len(read(tmp_path / "history.csv")) == 2


def test_other_columns_are_not_appended(tmp_path):
    tiny_learner(path=tmp_path, metrics=accuracy, cbs=CSVLogger()).fit(1)
    text = (tmp_path / "history.csv").read_text()
    with pytest.raises(DataError, match=r"columns epoch,.*accuracy,time and this fit .*mae,time"):
        tiny_learner(path=tmp_path, metrics=mae, cbs=CSVLogger(append=True)).fit(1)
    assert (tmp_path / "history.csv").read_text() == text


def test_a_name_that_a_spreadsheet_would_run_is_disarmed(tmp_path):
    metric = AvgMetric(accuracy)
    metric.name = '=HYPERLINK("x"),\n1'
    tiny_learner(path=tmp_path, metrics=metric, cbs=CSVLogger()).fit(1)
    header, row = read(tmp_path / "history.csv")
    assert header[3] == '\'=HYPERLINK("x"), 1'
    assert len(header) == len(row) == 5


def test_a_place_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    learn = tiny_learner(path=tmp_path, cbs=CSVLogger("file/history.csv"))
    batches = []
    learn.add_cb(Callback(before_batch=batches.append))
    with pytest.raises(DataError, match="is a file, not a folder"):
        learn.fit(1)
    assert not batches


def test_sweeps_and_predictions_are_not_logged(tmp_path):
    learn = tiny_learner(path=tmp_path, cbs=CSVLogger())
    learn.lr_find(num_it=20, show_plot=False)
    learn.get_preds()
    learn.validate()
    assert not (tmp_path / "history.csv").exists()


def test_a_silent_fit_is_logged(tmp_path, capsys):
    learn = tiny_learner(path=tmp_path, cbs=CSVLogger())
    with learn.no_logging():
        learn.fit(1)
    assert capsys.readouterr().out == ""
    assert len(read(tmp_path / "history.csv")) == 2


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from helpers import tiny_learner
from treadle.callbacks import CSVLogger
from treadle.loop import Callback

def die(cb):
    if cb.epoch == 2 and cb.iter == 3:
        os.kill(os.getpid(), signal.SIGKILL)

tiny_learner(path=sys.argv[2], cbs=[CSVLogger(), Callback(after_step=die)]).fit(5)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")
def test_after_a_kill_the_finished_epochs_are_there(tmp_path):
    tests = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", KILLED, tests, str(tmp_path)], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]
    text = (tmp_path / "history.csv").read_text()
    assert text.endswith("\n")
    assert [row[0] for row in read(tmp_path / "history.csv")] == ["epoch", "0", "1"]
    assert {len(row) for row in read(tmp_path / "history.csv")} == {4}
