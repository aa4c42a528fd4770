"""Metrics: sums and counts, weighted by sample, mergeable.

A metric is a function `f(pred, *targets)` that gives the mean over a batch, a `Metric`, or an
object with update, compute and reset such as those of torchmetrics. Totals stay on the device; the
host reads them once a pass, when `value` is asked for. No split into batches, no order of them and
no merge changes a value, but for rounding in its last digits.

A value is None, a dash in the table, where there is none: no sample was seen or counts, or the
metric is not defined for those that were.
"""

from treadle.metrics.accuracy import (
    accuracy,
    accuracy_multi,
    error_rate,
    foreground_acc,
    top_k_accuracy,
)
from treadle.metrics.adapters import ComputedMetric, as_metric
from treadle.metrics.agreement import BalancedAccuracy, MatthewsCorrCoef, MatthewsCorrCoefMulti
from treadle.metrics.base import AvgLoss, AvgMetric, Metric, SumMetric, averaged, batch_size
from treadle.metrics.class_scores import (
    F1Score,
    F1ScoreMulti,
    FBeta,
    FBetaMulti,
    Jaccard,
    JaccardMulti,
    Precision,
    PrecisionMulti,
    Recall,
    RecallMulti,
)
from treadle.metrics.language import Perplexity, perplexity
from treadle.metrics.regression import R2Score, mae, mse, rmse
from treadle.metrics.roc_auc import RocAuc, RocAucBinary, RocAucMulti
from treadle.metrics.segmentation import Dice, DiceMulti, JaccardCoeff, JaccardCoeffMulti

__all__ = [
    "AvgLoss",
    "AvgMetric",
    "BalancedAccuracy",
    "ComputedMetric",
    "Dice",
    "DiceMulti",
    "F1Score",
    "F1ScoreMulti",
    "FBeta",
    "FBetaMulti",
    "Jaccard",
    "JaccardCoeff",
    "JaccardCoeffMulti",
    "JaccardMulti",
    "MatthewsCorrCoef",
    "MatthewsCorrCoefMulti",
    "Metric",
    "Perplexity",
    "Precision",
    "PrecisionMulti",
    "R2Score",
    "Recall",
    "RecallMulti",
    "RocAuc",
    "RocAucBinary",
    "RocAucMulti",
    "SumMetric",
    "accuracy",
    "accuracy_multi",
    "as_metric",
    "averaged",
    "batch_size",
    "error_rate",
    "foreground_acc",
    "mae",
    "mse",
    "perplexity",
    "rmse",
    "top_k_accuracy",
]
