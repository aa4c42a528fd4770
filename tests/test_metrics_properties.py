"""What holds of every metric: no split, order or merge changes it, and no batch is waited for."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from helpers import tiny_learner
from treadle.callbacks import Recorder
from treadle.data import DataLoaders
from treadle.errors import UsageError
from treadle.learner import Learner
from treadle.metrics import (
    AvgLoss,
    AvgMetric,
    BalancedAccuracy,
    Dice,
    DiceMulti,
    F1Score,
    F1ScoreMulti,
    FBeta,
    Jaccard,
    JaccardCoeff,
    JaccardCoeffMulti,
    MatthewsCorrCoef,
    MatthewsCorrCoefMulti,
    Metric,
    Perplexity,
    Precision,
    R2Score,
    Recall,
    RocAuc,
    RocAucBinary,
    RocAucMulti,
    SumMetric,
    accuracy,
    accuracy_multi,
    as_metric,
    error_rate,
    foreground_acc,
    mae,
    mse,
    perplexity,
    rmse,
    top_k_accuracy,
)


def mean_gap(pred, targ):
    """A user's own function: a batch mean."""
    return (pred.argmax(1) - targ).abs().float().mean()


# Each with the kind of data that it measures.
CASES = {
    "classes": [
        *map(partial, [accuracy, error_rate, mean_gap, perplexity]),
        partial(top_k_accuracy, k=2),
        partial(accuracy, ignore_index=3),
        partial(foreground_acc, bkg_idx=1),
        lambda: Perplexity(ignore_index=0),
        lambda: F1Score(average="macro"),
        lambda: FBeta(0.5, average="micro", ignore_index=2),
        lambda: Precision(average="weighted"),
        lambda: Recall(average="macro", labels=[0, 2]),
        lambda: Jaccard(average="macro"),
        BalancedAccuracy,
        MatthewsCorrCoef,
        DiceMulti,
        JaccardCoeffMulti,
        lambda: RocAuc(average="weighted"),
        lambda: RocAuc(average="micro"),
    ],
    "labels": [
        partial(accuracy_multi, thresh=0.4),
        F1ScoreMulti,
        MatthewsCorrCoefMulti,
        lambda: RocAucMulti("micro"),
        lambda: RocAucMulti("weighted"),
        lambda: Dice(ignore_index=1),
        JaccardCoeff,
        RocAucBinary,
    ],
    "numbers": [*map(partial, [mse, rmse, mae]), R2Score],
}
ALL = [(kind, make) for kind, makers in CASES.items() for make in makers]


def made(make):
    """A metric: of a function that is held in a partial, or from its maker."""
    return AvgMetric(make) if isinstance(make, partial) else as_metric(make())


def samples(kind, n, seed):
    generator = torch.Generator().manual_seed(seed)
    if kind == "classes":
        pred = torch.randn(n, 4, generator=generator)
        return pred, torch.randint(0, 4, (n,), generator=generator)
    pred = torch.randn(n, 3, generator=generator)
    if kind == "labels":
        return pred, torch.randint(0, 2, (n, 3), generator=generator)
    # far from zero, where sums of squares lose their digits
    return pred + 1000, pred + 1000 + torch.randn(n, 3, generator=generator)


def close(a, b):
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-7)


@pytest.mark.parametrize(("kind", "make"), ALL)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_no_split_order_or_merge_changes_the_value(kind, make, data):
    n = data.draw(st.integers(1, 24))
    pred, targ = samples(kind, n, data.draw(st.integers(0, 2**31)))
    whole = made(make)
    whole.update(pred, targ)

    order = torch.tensor(data.draw(st.permutations(range(n))))
    cuts = sorted(data.draw(st.sets(st.integers(1, n), max_size=6)))
    parts = torch.tensor_split(order, cuts)
    metrics = [made(make) for _ in range(data.draw(st.integers(1, 3)))]
    for part in parts:
        if len(part):
            metric = data.draw(st.sampled_from(metrics))
            metric.update(pred[part], targ[part])
    first, *others = metrics
    for other in others:
        first.merge(other)
    assert close(first.value, whole.value)
    first.merge(made(make))  # of one that saw nothing
    assert close(first.value, whole.value)
    first.reset()
    assert first.value is None
    first.update(pred, targ)
    assert close(first.value, whole.value)


@pytest.mark.parametrize(("kind", "make"), ALL)
def test_before_any_sample_there_is_no_value(kind, make):
    metric = made(make)
    assert metric.value is None
    if make.__class__ is not partial or make.func is not mean_gap:
        pred, targ = samples(kind, 0, 0)
        metric.update(pred, targ)
        assert metric.value is None


@pytest.mark.parametrize(("kind", "make"), ALL)
def test_a_batch_is_not_waited_for(kind, make):
    """Fake tensors have shapes and no numbers: whatever would read one fails."""
    metric, (pred, targ) = made(make), samples(kind, 8, 0)
    with FakeTensorMode() as mode:
        fake_pred, fake_targ = mode.from_tensor(pred), mode.from_tensor(targ)
        for read in (torch.Tensor.item, torch.nonzero, torch.unique, torch.bincount):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                read(fake_targ.long().flatten()[:1])
        for _ in range(2):
            metric.update(fake_pred, fake_targ)


@pytest.mark.parametrize(("kind", "make"), ALL)
def test_what_is_kept_holds_no_graph(kind, make):
    metric, (pred, targ) = made(make), samples(kind, 8, 0)
    pred.requires_grad_()
    metric.update(pred, targ)

    def tensors(part):
        return part if isinstance(part, list) else [part] * isinstance(part, torch.Tensor)

    kept = [t for part in metric.totals for t in tensors(part)]
    assert kept
    assert not any(t.requires_grad for t in kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("kind", "make"), ALL)
def test_half_and_double_precision_are_taken(kind, make, dtype):
    metric, (pred, targ) = made(make), samples(kind, 32, 0)
    rounded = pred.to(dtype)
    metric.update(rounded, targ)
    exact = made(make)
    exact.update(rounded.double(), targ)
    assert close(metric.value, exact.value)


# In a learner


class Held(torch.nn.Module):
    """Gives what it is given: the data set holds the predictions."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=8, deadline=None)
def test_validation_gives_one_row_whatever_the_batch_size(n, bs):
    for kind, makers in CASES.items():
        pred, targ = samples(kind, n, seed=n)
        rows = []
        for size in (bs, n):
            batches = list(zip(pred.split(size), targ.split(size), strict=True))
            dls = DataLoaders(batches, batches, device="cpu")
            metrics = [made(make) for make in makers]
            learn = Learner(dls, Held(), lambda p, y: p.abs().mean(), metrics=metrics)
            rows.append(learn.validate())
        assert len(rows[0]) == 1 + len(makers)
        assert all(map(close, *rows)), kind


def test_metrics_are_columns_of_the_table():
    metrics = [accuracy, F1Score(average="macro"), MatthewsCorrCoef, RocAuc(), perplexity]
    learn = tiny_learner(metrics=metrics)
    learn.fit(1)
    names = "accuracy f1_score matthews_corrcoef roc_auc_score perplexity".split()
    assert learn.recorder.metric_names[3:-1] == names
    row = learn.recorder.values[-1]
    assert all(isinstance(value, float) for value in row)
    assert row[-1] == pytest.approx(math.exp(row[1]), rel=1e-5)  # the loss is the cross entropy


def test_several_targets_are_refused_by_name():
    x, y = torch.randn(4, 3), torch.zeros(4, dtype=torch.long)
    for metric in (as_metric(accuracy), F1Score(average="macro"), R2Score(), RocAuc()):
        with pytest.raises(UsageError, match=rf"{metric.name}.*\(4,\), a tensor of shape \(4,\)"):
            metric.update(x, y, y)
        with pytest.raises(UsageError, match=r"as predictions a tuple"):
            metric.update((x, x), y)


# A metric of one's own


def test_a_function_may_give_a_python_number_or_one_element():
    for f in (lambda p, y: 0.25, lambda p, y: torch.tensor([0.25])):
        metric = as_metric(f)
        metric.update(torch.zeros(3), torch.zeros(3))
        metric.update(torch.zeros(1), torch.zeros(1))
        assert metric.value == 0.25


def test_a_function_that_gives_one_number_a_sample_is_refused():
    metric = AvgMetric(lambda p, y: p - y, name="gap")
    with pytest.raises(UsageError, match=r"gap gave a tensor of shape \(3,\)"):
        metric.update(torch.zeros(3), torch.zeros(3))


def test_a_metric_may_be_named():
    metric = AvgMetric(partial(top_k_accuracy, k=3), name="top_3")
    assert tiny_learner(metrics=metric).recorder.metric_names[3] == "top_3"
    assert as_metric(torch.nn.L1Loss()).name == "L1Loss"


def test_merging_needs_a_like_metric():
    with pytest.raises(UsageError, match=r"f1_score can take in what another .*recall"):
        F1Score().merge(Recall())
    with pytest.raises(UsageError, match=r"mae.*mse"):
        AvgMetric(mae).merge(AvgMetric(mse))

    class Own(Metric):
        def reset(self):
            pass

        def accumulate(self, learn):
            pass

        value = None

    with pytest.raises(UsageError, match=r"Own cannot be merged"):
        Own().merge(Own())


def test_a_mean_of_nothing_is_not_a_number():
    nothing = accuracy(torch.zeros(2, 3), torch.full((2,), -100), ignore_index=-100)
    assert nothing.isnan()


def test_what_is_no_metric_is_refused():
    with pytest.raises(UsageError, match="'accuracy' is no metric"):
        as_metric("accuracy")


def test_a_loss_that_is_no_number_is_told_as_such():
    loss = AvgLoss()
    loss.update(torch.tensor(math.nan), torch.zeros(2))
    assert math.isnan(loss.value)


def test_the_recorder_takes_any_metric():
    class Count(SumMetric):
        name = "count"

        def sums(self, pred, targ):
            return (len(targ),)

        def result(self, n):
            return n

    learn = tiny_learner()
    recorder = Recorder([Count])
    learn.add_cb(recorder)
    assert learn.validate()[1] == 40.0
