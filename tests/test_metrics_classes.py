"""Metrics of classes, labels and regions against scikit-learn, absent classes included."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import sklearn.metrics as skm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.errors import UsageError
from treadle.metrics import (
    AvgMetric,
    BalancedAccuracy,
    Dice,
    DiceMulti,
    F1Score,
    F1ScoreMulti,
    FBeta,
    FBetaMulti,
    Jaccard,
    JaccardCoeff,
    JaccardCoeffMulti,
    JaccardMulti,
    MatthewsCorrCoef,
    MatthewsCorrCoefMulti,
    Precision,
    PrecisionMulti,
    Recall,
    RecallMulti,
    accuracy,
    accuracy_multi,
    error_rate,
    foreground_acc,
    top_k_accuracy,
)

SINGLE = [
    (Precision, skm.precision_score),
    (Recall, skm.recall_score),
    (F1Score, skm.f1_score),
    (partial(FBeta, 2.0), partial(skm.fbeta_score, beta=2.0)),
    (Jaccard, skm.jaccard_score),
]
MULTI = [
    (PrecisionMulti, skm.precision_score),
    (RecallMulti, skm.recall_score),
    (F1ScoreMulti, skm.f1_score),
    (partial(FBetaMulti, 0.5), partial(skm.fbeta_score, beta=0.5)),
    (JaccardMulti, skm.jaccard_score),
]


def measured(metric, pred, targ):
    """The value after one batch."""
    metric.reset()
    metric.update(pred, targ)
    return metric.value


def oracle(score, *args, **kwargs):
    """scikit-learn's value, whose warnings are about the absent classes meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return score(*args, **kwargs)


@st.composite
def answers(draw, classes=4):
    """Scores of `classes` classes and targets, of which some never occur."""
    n = draw(st.integers(1, 12))
    seen = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=classes))
    targ = draw(st.lists(st.sampled_from(seen), min_size=n, max_size=n))
    given_ = draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n))
    return torch.nn.functional.one_hot(torch.tensor(given_), classes).float(), torch.tensor(targ)


@given(answers(), st.sampled_from(["macro", "micro", "weighted"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_averages_over_classes_are_scikit_learns(batch, average, chosen):
    pred, targ = batch
    labels = [0, 2] if chosen else None
    for ours, theirs in SINGLE:
        expected = oracle(theirs, targ, pred.argmax(1), average=average, labels=labels)
        got = measured(ours(average=average, labels=labels), pred, targ)
        assert got == pytest.approx(expected, abs=1e-12), ours


@given(answers(classes=2), st.sampled_from([0, 1]))
@settings(max_examples=40, deadline=None)
def test_binary_scores_are_scikit_learns(batch, pos_label):
    pred, targ = batch
    for ours, theirs in SINGLE:
        # labels and macro of one class is what "binary" says when that class may be absent
        expected = oracle(theirs, targ, pred.argmax(1), labels=[pos_label], average="macro")
        got = measured(ours(pos_label=pos_label), pred, targ)
        assert got == pytest.approx(expected, abs=1e-12), ours


@given(answers())
@settings(max_examples=60, deadline=None)
def test_fair_scores_are_scikit_learns(batch):
    pred, targ = batch
    given_ = pred.argmax(1)
    mcc = oracle(skm.matthews_corrcoef, targ, given_)
    assert measured(MatthewsCorrCoef(), pred, targ) == pytest.approx(mcc, abs=1e-9)
    fair = oracle(skm.balanced_accuracy_score, targ, given_)
    assert measured(BalancedAccuracy(), pred, targ) == pytest.approx(fair)
    if len(set(targ.tolist())) > 1:
        fair = oracle(skm.balanced_accuracy_score, targ, given_, adjusted=True)
        assert measured(BalancedAccuracy(adjusted=True), pred, targ) == pytest.approx(fair)
    else:
        assert measured(BalancedAccuracy(adjusted=True), pred, targ) is None


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 4), st.floats(0.05, 0.95))
@settings(max_examples=50, deadline=None)
def test_several_labels_are_scikit_learns(seed, n, labels, thresh):
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randn(n, labels, generator=generator)
    targ = torch.randint(0, 2, (n, labels), generator=generator)
    answer = (pred.sigmoid() > thresh).long()
    assert measured(AvgMetric(partial(accuracy_multi, thresh=thresh)), pred, targ) == (
        pytest.approx((answer == targ).double().mean().item())
    )
    mcc = oracle(skm.matthews_corrcoef, targ.flatten(), answer.flatten())
    assert measured(MatthewsCorrCoefMulti(thresh), pred, targ) == pytest.approx(mcc, abs=1e-9)
    for ours, theirs in MULTI:
        for average in ("macro", "micro", "weighted"):
            # scikit-learn takes one column for two classes, so it gets the class that is meant
            asked = {"labels": [1], "average": "macro"} if labels == 1 else {"average": average}
            flat = (lambda t: t.flatten()) if labels == 1 else (lambda t: t)
            expected = oracle(theirs, flat(targ), flat(answer), **asked)
            got = measured(ours(thresh=thresh, average=average), pred, targ)
            assert got == pytest.approx(expected, abs=1e-12), (ours, average)


def test_probabilities_need_no_sigmoid_and_one_output_is_binary():
    prob, targ = torch.tensor([0.9, 0.2, 0.6, 0.4]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    for shape in [(4,), (4, 1)]:
        pred = prob.reshape(shape)
        assert accuracy_multi(pred, targ, sigmoid=False) == 0.5
        assert accuracy_multi(pred.logit(), targ) == 0.5
        for metric in (
            F1ScoreMulti(average="binary", sigmoid=False),
            PrecisionMulti(sigmoid=False),
        ):
            assert measured(metric, pred, targ) == 0.5
        assert measured(F1ScoreMulti(average="binary"), pred.logit(), targ.reshape(4, 1)) == 0.5
    assert measured(RecallMulti(thresh=0.1, sigmoid=False), prob, targ) == 1.0


def test_labels_choose_columns():
    pred = torch.tensor([[1.0, 1.0, -1.0], [1.0, -1.0, 1.0]])
    targ = torch.tensor([[1, 0, 0], [1, 0, 1]])
    for labels in ([0, 1], [2], [1]):
        expected = oracle(skm.f1_score, targ, pred > 0, average="macro", labels=labels)
        assert measured(F1ScoreMulti(labels=labels), pred, targ) == expected


# Accuracy


@given(answers(classes=7), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_shares_of_right_answers_are_scikit_learns(batch, k):
    pred, targ = batch
    pred = pred + torch.rand(pred.shape, generator=torch.Generator().manual_seed(k)) / 2
    share = skm.accuracy_score(targ, pred.argmax(1))
    assert accuracy(pred, targ).item() == pytest.approx(share)
    assert error_rate(pred, targ).item() == pytest.approx(1 - share)
    best = oracle(skm.top_k_accuracy_score, targ, pred.numpy(), k=min(k, 7), labels=range(7))
    assert top_k_accuracy(pred, targ, k=k).item() == pytest.approx(best)


def test_the_class_axis_may_be_any():
    pred, targ = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    expected = skm.accuracy_score(targ.flatten(), pred.argmax(1).flatten())
    assert accuracy(pred, targ, axis=1).item() == pytest.approx(expected)
    assert accuracy(pred.movedim(1, -1), targ).item() == pytest.approx(expected)
    assert measured(AvgMetric(partial(accuracy, axis=1)), pred, targ) == pytest.approx(expected)
    by_hand = (pred.topk(2, dim=1).indices == targ[:, None]).any(1).float().mean()
    assert top_k_accuracy(pred, targ, k=2, axis=1) == by_hand
    f1 = skm.f1_score(targ.flatten(), pred.argmax(1).flatten(), average="macro")
    assert measured(F1Score(axis=1, average="macro"), pred, targ) == pytest.approx(f1)


def test_one_side_may_be_flat_and_single_axes_are_free():
    pred, targ = torch.randn(6, 4), torch.randint(4, (2, 3))
    assert accuracy(pred, targ) == accuracy(pred.view(2, 3, 4), targ.flatten())
    assert accuracy(pred, targ.view(6, 1)) == accuracy(pred, targ)
    assert accuracy(pred[:1], targ[0, 0]) == accuracy(pred[0], targ[0, 0])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_targets_of_any_integer_dtype(dtype):
    pred, targ = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1, 0])
    assert accuracy(pred.bfloat16(), targ.to(dtype)).item() == pytest.approx(2 / 3)
    assert measured(Precision(ignore_index=-100), pred, targ.to(dtype)) == 0.5
    assert accuracy(pred, targ.to(dtype), ignore_index=-100).item() == pytest.approx(2 / 3)


def test_targets_to_ignore_do_not_count():
    pred = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    targ = torch.randint(5, (40,), generator=torch.Generator().manual_seed(1))
    padded = targ.where(torch.arange(40) % 3 > 0, -100)
    kept = padded != -100
    for f in (accuracy, error_rate, top_k_accuracy):
        f = partial(f, k=2) if f is top_k_accuracy else f
        assert f(pred, padded, ignore_index=-100) == f(pred[kept], targ[kept])
    for metric in (F1Score(average="macro"), BalancedAccuracy(), MatthewsCorrCoef()):
        expected = measured(metric, pred[kept], targ[kept])
        metric.ignore_index = -100
        assert measured(metric, pred, padded) == expected


# Regions


def regions(seed=0, classes=2):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(3, classes, 5, 4, generator=generator),
        torch.randint(classes, (3, 5, 4), generator=generator),
    )


def test_overlap_of_a_foreground_is_scikit_learns():
    pred, targ = regions()
    flat, answer = targ.flatten(), pred.argmax(1).flatten()
    assert measured(Dice(), pred, targ) == pytest.approx(skm.f1_score(flat, answer))
    assert measured(JaccardCoeff(), pred, targ) == pytest.approx(skm.jaccard_score(flat, answer))


@pytest.mark.parametrize("shape", [(3, 1, 5, 4), (3, 5, 4)])
def test_one_score_a_pixel_has_a_threshold(shape):
    pred, targ = regions()
    score = (pred[:, 1] - pred[:, 0]).reshape(shape)
    assert measured(Dice(), score, targ) == measured(Dice(), pred, targ)
    assert measured(Dice(sigmoid=False), score.sigmoid(), targ.float()) == (
        measured(Dice(), pred, targ)
    )
    strict = measured(Dice(thresh=0.9), score, targ)
    answer = (score.sigmoid() > 0.9).flatten()
    assert strict == pytest.approx(skm.f1_score(targ.flatten(), answer))


def test_overlap_of_several_classes_leaves_out_the_absent():
    pred, targ = regions(classes=5)
    pred[:, 3], targ = -9.0, targ.where(targ != 3, 0)
    answer = pred.argmax(1).flatten()
    expected = skm.f1_score(targ.flatten(), answer, average="macro")
    assert measured(DiceMulti(), pred, targ) == pytest.approx(expected)
    expected = skm.jaccard_score(targ.flatten(), answer, average="macro")
    assert measured(JaccardCoeffMulti(), pred, targ) == pytest.approx(expected)
    expected = skm.f1_score(targ.flatten(), answer, average="macro", labels=[1, 2, 4])
    assert measured(DiceMulti(labels=[1, 2, 4]), pred, targ) == pytest.approx(expected)


def test_pixels_to_ignore_and_the_background():
    pred, targ = regions()
    void = torch.arange(targ.numel()).reshape(targ.shape) % 4 == 0
    marked = targ.masked_fill(void, 255).to(torch.uint8)
    kept, answer = ~void.flatten(), pred.argmax(1).flatten()
    expected = skm.jaccard_score(targ.flatten()[kept], answer[kept])
    assert measured(JaccardCoeff(ignore_index=255), pred, marked) == pytest.approx(expected)
    expected = skm.jaccard_score(targ.flatten()[kept], answer[kept], average="macro")
    multi = JaccardCoeffMulti(ignore_index=255)
    assert measured(multi, pred, marked) == pytest.approx(expected)
    front = kept & (targ.flatten() == 1)
    expected = (answer[front] == 1).double().mean().item()
    masked = foreground_acc(pred, marked, ignore_index=255)
    assert masked.item() == pytest.approx(expected)


def test_no_foreground_at_all_has_no_overlap():
    pred = torch.tensor([[[9.0, 9.0], [0.0, 0.0]]])
    for metric in (Dice(), JaccardCoeff(), AvgMetric(foreground_acc)):
        assert measured(metric, pred, torch.tensor([[0, 0]])) is None


# What is refused


@pytest.mark.parametrize("metric", [F1Score(), AvgMetric(accuracy), MatthewsCorrCoef(), Dice()])
@pytest.mark.parametrize(
    ("pred", "targ", "said"),
    [
        ((4, 2), (3,), r"\(4, 2\).*\(3,\)"),
        ((4, 2, 3), (4, 5), r"expected targ of shape \(4, [23]\)"),
        ((), (3,), r"no axis"),
    ],
)
def test_shapes_that_do_not_fit_are_named(metric, pred, targ, said):
    with pytest.raises(UsageError, match=said):
        metric.update(torch.zeros(pred), torch.zeros(targ, dtype=torch.int64))


def test_the_axis_that_would_fit_is_named():
    with pytest.raises(UsageError, match=r"With axis=1 they would fit"):
        accuracy(torch.zeros(2, 5, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64))
    # the flattened answers would be as many as the targets, and nonsense
    with pytest.raises(UsageError, match=r"\(2, 4, 4, 4\)"):
        accuracy(torch.zeros(2, 4, 4, 4), torch.zeros(2, 2, 2, 4, dtype=torch.int64))


def test_targets_that_are_no_classes_are_refused():
    with pytest.raises(UsageError, match=r"targ of shape \(3,\) \(float32\).*class indices"):
        accuracy(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(UsageError, match=r"two scores or more.*F1ScoreMulti"):
        F1Score().update(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


def test_binary_is_for_two_classes():
    with pytest.raises(UsageError, match=r"average='binary' needs scores of two.*has 3"):
        F1Score().update(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"needs one label.*has 3"):
        F1ScoreMulti(average="binary").update(torch.zeros(4, 3), torch.zeros(4, 3))
    with pytest.raises(UsageError, match=r"dice is of one foreground.*DiceMulti"):
        Dice().update(torch.zeros(4, 3, 2), torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(UsageError, match="pos_label=2"):
        Precision(pos_label=2)
    with pytest.raises(UsageError, match="labels=\\[1\\]"):
        Precision(labels=[1])
    with pytest.raises(UsageError, match="did you mean macro"):
        Precision(average="marco")


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_targets_outside_the_classes_are_told_when_the_value_is_read(label):
    targ = torch.tensor([0, 1, label, label])
    for metric in (Recall(average="macro"), BalancedAccuracy(), MatthewsCorrCoef()):
        metric.update(torch.randn(4, 3), targ)
        with pytest.raises(UsageError, match="2 targets that are none of the classes 0 to 2"):
            _ = metric.value
        metric.reset()
        metric.ignore_index = label
        metric.update(torch.randn(4, 3), targ)
        assert metric.value is not None


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(UsageError, match=r"labels \[3\].*0 to 2"):
        measured(Recall(average="macro", labels=[0, 3]), torch.eye(3), torch.arange(3))


def test_classes_do_not_change_between_batches():
    metric = Recall(average="macro")
    metric.update(torch.eye(3), torch.arange(3))
    with pytest.raises(UsageError, match=r"shape \(3,\).*shape \(4,\)"):
        metric.update(torch.eye(4), torch.arange(4))


def test_large_counts_stay_exact():
    """Sums of float32 stand still at 2**24."""
    metric = AvgMetric(accuracy)
    metric.totals = (torch.tensor(2**24), 2**24)
    metric.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert metric.value == 2**24 / (2**24 + 1)
    assert np.float32(2**24) + np.float32(1) == np.float32(2**24)
