"""Experiments on learners: the finders of hyper-parameters, and trainings side by side."""

from treadle.study.compare import compare
from treadle.study.comparison import Comparison
from treadle.study.find import Found, find
from treadle.study.lr_find import lr_find
from treadle.study.suggest import minimum, slide, steep, valley
from treadle.study.sweep import LRFinder, Sweep

__all__ = [
    "Comparison",
    "Found",
    "LRFinder",
    "Sweep",
    "compare",
    "find",
    "lr_find",
    "minimum",
    "slide",
    "steep",
    "valley",
]
