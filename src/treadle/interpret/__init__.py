"""What a model takes for what: its answers beside the truth, the worst of them as pictures.

A class for each kind of target: single labels, masks, numbers. All of them begin with
`from_learner(learn)`, and go on with `top_losses(k)` and `plot_top_losses(k)`.
"""

from __future__ import annotations

from treadle.interpret.classification import ClassificationInterpretation
from treadle.interpret.regression import RegressionInterpretation
from treadle.interpret.segmentation import SegmentationInterpretation

__all__ = [
    "ClassificationInterpretation",
    "RegressionInterpretation",
    "SegmentationInterpretation",
]
