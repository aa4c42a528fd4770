"""Objects with update, compute and reset, first of all those of torchmetrics, as metrics."""

from __future__ import annotations

import warnings

import pytest
import torch

from helpers import tiny_learner
from treadle.errors import UsageError
from treadle.metrics import ComputedMetric, F1Score, RocAuc, accuracy, as_metric


@pytest.fixture(scope="module")
def tm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its own dependencies say
        return pytest.importorskip("torchmetrics")


def test_metrics_of_torchmetrics_stand_beside_ours(tm):
    kwargs = {"num_classes": 4, "validate_args": False}
    theirs = [
        tm.classification.MulticlassAccuracy(average="micro", **kwargs),
        tm.classification.MulticlassF1Score(average="macro", **kwargs),
        tm.classification.MulticlassAUROC(average="macro", **kwargs),
    ]
    learn = tiny_learner(metrics=[accuracy, F1Score(average="macro"), RocAuc(), *theirs])
    learn.fit(2)
    names = "MulticlassAccuracy MulticlassF1Score MulticlassAUROC".split()
    assert learn.recorder.metric_names[6:-1] == names
    for row in learn.recorder.values:
        assert row[2:5] == pytest.approx(row[5:], rel=1e-5)


def test_a_pass_is_one_value_and_each_starts_anew(tm):
    learn = tiny_learner(metrics=tm.MeanSquaredError())
    learn.loss_func = lambda p, y: (p - y).square().mean()
    learn.dls.loaders = [
        [(x, torch.randn(len(x), 4)) for x, _ in batches] for batches in learn.dls.loaders
    ]
    first = learn.validate()
    assert first == learn.validate()
    assert first[0] == pytest.approx(first[1], rel=1e-5)


def test_a_collection_is_to_be_taken_apart(tm):
    collection = tm.MetricCollection([tm.MeanSquaredError(), tm.MeanAbsoluteError()])
    metric = as_metric(collection)
    metric.accumulate(Batch(torch.zeros(3), torch.ones(3)))
    with pytest.raises(UsageError, match=r"MetricCollection.compute\(\) gave a dict.*one by one"):
        _ = metric.value


class Batch:
    """What a metric reads of a learner."""

    def __init__(self, pred, targ):
        self.pred, self.yb = pred, (targ,)


class Largest:
    """Another object of the kind: no torchmetrics, no `to`, no merging."""

    def __init__(self, as_tensor=False):
        self.as_tensor = as_tensor

    def reset(self):
        self.seen = []

    def update(self, pred, targ):
        self.seen.append(pred.max().item())

    def compute(self):
        return torch.tensor(self.seen) if self.as_tensor else max(self.seen)


def test_any_object_with_the_three_verbs_serves():
    metric = ComputedMetric(Largest(), name="largest")
    learn = tiny_learner(metrics=metric)
    assert metric.value is None
    learn.fit(1)
    assert learn.recorder.metric_names[3] == "largest"
    preds, _ = learn.get_preds(act=lambda p: p)
    assert learn.recorder.values[0][2] == pytest.approx(preds.max().item())


def test_a_value_that_is_several_is_refused():
    metric = as_metric(Largest(as_tensor=True))
    metric.reset()
    for _ in range(2):
        metric.accumulate(Batch(torch.zeros(3), torch.ones(3)))
    with pytest.raises(UsageError, match=r"Largest.compute\(\) gave a tensor of shape \(2,\)"):
        _ = metric.value


def test_they_are_not_merged():
    with pytest.raises(UsageError, match=r"ComputedMetric cannot be merged"):
        as_metric(Largest()).merge(as_metric(Largest()))
