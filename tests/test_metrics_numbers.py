"""Regression, perplexity and ROC curves against scikit-learn and hand computation in float64."""

from __future__ import annotations

import math
import warnings

import pytest
import sklearn.metrics as skm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.errors import UsageError
from treadle.metrics import (
    AvgMetric,
    Perplexity,
    R2Score,
    RocAuc,
    RocAucBinary,
    RocAucMulti,
    mae,
    mse,
    perplexity,
    rmse,
)


def measured(metric, *batches):
    metric.reset()
    for batch in batches:
        metric.update(*batch)
    return metric.value


# Regression

numbers = st.lists(st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 2), min_size=2, max_size=20).map(
    lambda pairs: torch.tensor(pairs).unbind(1)
)


@given(numbers)
@settings(max_examples=60, deadline=None)
def test_errors_are_scikit_learns(pair):
    pred, targ = pair
    assert mse(pred, targ).item() == pytest.approx(skm.mean_squared_error(targ, pred), rel=1e-6)
    assert mae(pred, targ).item() == pytest.approx(skm.mean_absolute_error(targ, pred), rel=1e-6)
    root = skm.root_mean_squared_error(targ, pred)
    assert rmse(pred, targ).item() == pytest.approx(root, rel=1e-6)
    expected = skm.r2_score(targ.double(), pred.double())
    assert measured(R2Score(), (pred.double(), targ.double())) == pytest.approx(expected, rel=1e-9)


def test_the_root_is_taken_of_the_whole_pass():
    pred, targ = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([3.0, 0.0, 0.0])
    batches = [(pred[:1], targ[:1]), (pred[1:], targ[1:])]
    assert measured(AvgMetric(rmse), *batches) == pytest.approx(math.sqrt(3))


def test_r2_far_from_zero_keeps_its_digits():
    generator = torch.Generator().manual_seed(0)
    targ = torch.randn(4000, generator=generator, dtype=torch.float64) + 1e7
    pred = targ + 0.5 * torch.randn(4000, generator=generator, dtype=torch.float64)
    expected = skm.r2_score(targ, pred)
    assert 0.7 < expected < 0.8
    got = measured(R2Score(), *zip(pred.split(7), targ.split(7), strict=True))
    assert got == pytest.approx(expected, rel=1e-7)


def test_r2_of_constant_targets_and_of_one_sample():
    one = torch.ones(3)
    assert measured(R2Score(), (one, one)) == skm.r2_score([1, 1, 1], [1, 1, 1]) == 1.0
    assert measured(R2Score(), (2 * one, one)) == skm.r2_score([1, 1, 1], [2, 2, 2]) == 0.0
    assert measured(R2Score(), (one[:1], one[:1])) is None


def test_shapes_that_would_broadcast_are_refused():
    for f in (mse, mae, rmse):
        with pytest.raises(UsageError, match=rf"{f.__name__} got pred of shape \(4, 3\).*\(4, 1\)"):
            f(torch.zeros(4, 3), torch.zeros(4, 1))
        with pytest.raises(UsageError, match=r"\(2, 3\).*\(3, 2\)"):
            f(torch.zeros(2, 3), torch.zeros(3, 2))
        assert f(torch.zeros(4, 1), torch.ones(4)) == 1.0  # not the 16 pairs of them
    with pytest.raises(UsageError, match=r"complex64.*real"):
        mse(torch.zeros(2, dtype=torch.complex64), torch.zeros(2))


def test_integer_targets_and_half_predictions():
    assert mae(torch.tensor([1.5], dtype=torch.bfloat16), torch.tensor([1])) == 0.5


def test_the_error_can_be_a_loss():
    pred = torch.zeros(3, requires_grad=True)
    mse(pred, torch.ones(3)).backward()
    assert torch.allclose(pred.grad, torch.full((3,), -2 / 3))


# Perplexity


def test_every_token_counts_alike():
    """Two texts of different lengths, padded within a batch or alone."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 9, 11, generator=generator)
    tokens = torch.randint(11, (2, 9), generator=generator)
    tokens[1, 4:] = -100
    kept = (tokens != -100).flatten()
    losses = F.cross_entropy(
        scores.double().flatten(0, 1)[kept], tokens.flatten()[kept], reduction="none"
    )
    expected = losses.mean().exp().item()
    assert perplexity(scores, tokens).item() == pytest.approx(expected)
    alone = [(scores[:1], tokens[:1]), (scores[1:, :4], tokens[1:, :4])]
    for batches in ([(scores, tokens)], alone):
        assert measured(Perplexity(), *batches) == pytest.approx(expected)
    assert measured(Perplexity(axis=1), (scores.mT, tokens)) == pytest.approx(expected)


def test_a_hopeless_model_is_infinitely_perplexed():
    scores = torch.tensor([[0.0, 2e3]])
    assert measured(Perplexity(), (scores, torch.tensor([0]))) == math.inf


# ROC curves


@st.composite
def rankings(draw, classes):
    """Scores with many ties, of raw outputs, and classes that all occur."""
    n = draw(st.integers(classes, 14))
    score = st.lists(st.integers(-3, 3), min_size=classes, max_size=classes)
    pred = torch.tensor(draw(st.lists(score, min_size=n, max_size=n)), dtype=torch.float32)
    rest = draw(st.lists(st.integers(0, classes - 1), min_size=n - classes, max_size=n - classes))
    return pred, torch.tensor([*range(classes), *rest])


@given(rankings(classes=4), st.sampled_from(["macro", "micro", "weighted"]))
@settings(max_examples=60, deadline=None)
def test_one_class_against_the_rest_is_scikit_learns(ranking, average):
    pred, targ = ranking
    prob = pred.double().softmax(1)
    expected = skm.roc_auc_score(targ, prob, multi_class="ovr", average=average)
    batches = list(zip(pred.split(3), targ.split(3), strict=True))
    assert measured(RocAuc(average=average), *batches) == pytest.approx(expected)
    given_prob = measured(RocAuc(average=average, softmax=False), (prob, targ))
    assert given_prob == pytest.approx(expected)


@given(rankings(classes=2))
@settings(max_examples=60, deadline=None)
def test_two_classes_and_one_score_are_scikit_learns(ranking):
    pred, targ = ranking
    score = pred[:, 1] - pred[:, 0]
    expected = skm.roc_auc_score(targ, score)
    for metric, scores in [
        (RocAuc(), pred),
        (RocAucBinary(), pred),
        (RocAucBinary(), score),
        (RocAucBinary(), score[:, None].sigmoid()),
        (RocAucMulti(), score[:, None]),
        (RocAuc(softmax=False), torch.stack([-score, score], 1)),
    ]:
        assert measured(metric, (scores, targ)) == pytest.approx(expected)


@given(rankings(classes=3), st.sampled_from(["macro", "micro", "weighted"]))
@settings(max_examples=30, deadline=None)
def test_several_labels_are_scikit_learns(ranking, average):
    pred, targ = ranking
    labels = F.one_hot(targ, 3)
    expected = skm.roc_auc_score(labels, pred, average=average)
    assert measured(RocAucMulti(average), (pred, labels)) == pytest.approx(expected)
    assert measured(RocAucMulti(average), (pred, labels.float())) == pytest.approx(expected)


def test_a_class_that_never_occurs_leaves_the_macro_average_undefined():
    pred, targ = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 1, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prob = pred.double().softmax(1)
        theirs = skm.roc_auc_score(targ, prob, multi_class="ovr", labels=[0, 1, 2])
        weighted = skm.roc_auc_score(
            targ, prob, multi_class="ovr", labels=[0, 1, 2], average="weighted"
        )
    assert math.isnan(theirs)
    assert measured(RocAuc(), (pred, targ)) is None
    assert measured(RocAuc(average="weighted"), (pred, targ)) == pytest.approx(weighted)
    assert measured(RocAuc(), (pred[:, :2], torch.zeros(6, dtype=torch.long))) is None


def test_saturated_scores_still_rank():
    """Their softmax is 1.0 to the last digit."""
    pred = torch.tensor([[0.0, 50.0], [0.0, 60.0]])
    assert pred.double().softmax(1)[0, 1] == 1.0
    assert measured(RocAuc(), (pred, torch.tensor([0, 1]))) == 1.0


def test_scores_are_copied():
    """A compiled model may write its next answer into the same memory."""
    pred, targ = torch.tensor([[0.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 1])
    metric = RocAuc()
    metric.update(pred, targ)
    pred.fill_(0), targ.fill_(0)
    assert metric.value == 1.0


def test_scores_that_are_no_numbers_have_no_rank():
    pred = torch.tensor([[0.0, math.nan], [0.0, 2.0]])
    assert math.isnan(measured(RocAuc(), (pred, torch.tensor([0, 1]))))


def test_what_has_no_curve_is_refused():
    with pytest.raises(UsageError, match=r"RocAucBinary got pred of shape \(2, 3\).*RocAuc takes"):
        RocAucBinary().update(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))
    with pytest.raises(UsageError, match="did you mean weighted"):
        RocAuc(average="weight")
    with pytest.raises(UsageError, match="1 targets that are none of the classes 0 to 2"):
        measured(RocAuc(), (torch.zeros(2, 3), torch.tensor([0, 3])))
