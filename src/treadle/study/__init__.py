"""Experiments on learners: the learning-rate finder, and trainings side by side."""

from treadle.study.compare import compare
from treadle.study.comparison import Comparison
from treadle.study.lr_find import LRFinder, lr_find
from treadle.study.suggest import minimum, steep, valley

__all__ = ["Comparison", "LRFinder", "compare", "lr_find", "minimum", "steep", "valley"]
