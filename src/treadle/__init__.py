"""Treadle: open every part of training, and pay nothing for it."""

__version__ = "0.1.0"
