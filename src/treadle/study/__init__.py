"""Instruments that try something on a learner and put it back: the learning-rate finder."""

from treadle.study.lr_find import LRFinder, lr_find
from treadle.study.suggest import minimum, steep, valley

__all__ = ["LRFinder", "lr_find", "minimum", "steep", "valley"]
