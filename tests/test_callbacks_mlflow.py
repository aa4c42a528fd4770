"""What MLflow keeps of a fit: the real package, its store in a folder of the test."""

from __future__ import annotations

import sys

import pytest

from helpers import tiny_learner
from treadle.callbacks import MLflowCallback
from treadle.errors import UsageError
from treadle.loop import Callback
from treadle.metrics import AvgMetric, accuracy


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """The package, with a store of files: that of a database needs more than mlflow-skinny."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    mlflow = pytest.importorskip("mlflow")
    earlier = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    yield mlflow
    mlflow.end_run()
    mlflow.set_tracking_uri(earlier)


def runs(mlflow):
    return mlflow.MlflowClient().search_runs([e.experiment_id for e in mlflow.search_experiments()])


def history(mlflow, run, name):
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, name)
    return [(point.step, point.value) for point in sorted(points, key=lambda point: point.step)]


def test_every_loss_and_hyper_by_step_and_the_table_by_epoch(mlflow, tmp_path):
    learn = tiny_learner(metrics=accuracy, path=tmp_path)
    learn.fit_one_cycle(2, 0.1, cbs=MLflowCallback(every=5, run_name="first", tags={"a": "b"}))
    (run,) = runs(mlflow)
    assert (run.info.run_name, run.info.status, run.data.tags["a"]) == ("first", "FINISHED", "b")
    recorder = learn.recorder
    assert history(mlflow, run, "train/loss") == list(enumerate(recorder.raw_losses))
    assert history(mlflow, run, "train/smooth_loss") == list(enumerate(recorder.losses))
    for name, values in recorder.hps.items():
        assert history(mlflow, run, f"hyper/{name}") == list(enumerate(values))
    for column, name in enumerate(["train_loss", "valid_loss", "accuracy"]):
        expected = [(7, recorder.values[0][column]), (15, recorder.values[1][column])]
        assert history(mlflow, run, f"epoch/{name}") == expected


def test_fits_with_one_callback_are_one_run(mlflow, tmp_path):
    learn = tiny_learner(path=tmp_path, cbs=MLflowCallback(run_name="both"))
    assert learn.mlflow in learn.cbs
    learn.fit(1)
    assert mlflow.active_run() is None
    learn.fit(1)
    (run,) = runs(mlflow)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(mlflow, run, "train/loss")] == list(range(16))


def test_the_users_own_run_is_used_and_left_open(mlflow, tmp_path):
    learn = tiny_learner(path=tmp_path, cbs=MLflowCallback())
    with mlflow.start_run(run_name="own") as run:
        learn.fit(1)
        assert mlflow.active_run().info.run_id == run.info.run_id
        mlflow.log_metric("after", 1.0)
    assert len(runs(mlflow)) == 1
    assert len(history(mlflow, run, "train/loss")) == 8


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_all_is_logged_and_the_run_is_marked_when_the_fit_fails(mlflow, tmp_path, error):
    def fail(cb):
        if cb.iter == 5:
            raise error

    learn = tiny_learner(path=tmp_path, cbs=[MLflowCallback(), Callback(before_step=fail)])
    with pytest.raises(error):
        learn.fit(1)
    assert mlflow.active_run() is None
    (run,) = runs(mlflow)
    assert run.info.status == "FAILED"
    assert len(history(mlflow, run, "train/loss")) == 5


def test_more_rows_than_one_request_takes_and_names_that_it_refuses(mlflow, tmp_path):
    learn = tiny_learner(metrics=AvgMetric(accuracy, name="top (1)%"), path=tmp_path)
    learn.fit(40, cbs=MLflowCallback(every=320))
    (run,) = runs(mlflow)
    assert len(history(mlflow, run, "train/loss")) == 320
    assert len(history(mlflow, run, "epoch/top _1__")) == 40


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError, match=r"pip install 'treadle\[mlflow\]'"):
        tiny_learner(cbs=MLflowCallback()).fit(1)
