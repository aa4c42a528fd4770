"""What predictions and targets must look like; an error names both shapes.

Only shapes and dtypes are looked at: reading numbers would wait for the device in each batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from treadle.errors import UsageError


def class_targets(who: str, pred: Tensor, targ: Tensor, axis: int) -> Tensor:
    """`targ` in the shape of `pred` without its class axis.

    Axes of length 1 are free, and either side may be flat.

    Raises:
        UsageError: if `targ` holds no class indices, `pred` no scores of two classes or more on
            `axis`, or the shapes do not fit.
    """
    both = f"pred {describe(pred)} and targ {describe(targ)}"
    if targ.is_floating_point() or targ.is_complex():
        raise UsageError(
            f"{who} got {both}; expected targ to hold class indices, of an integer dtype. Targets "
            "that are 0 or 1 for each label are for accuracy_multi and the ...Multi metrics."
        )
    if not -pred.ndim <= axis < pred.ndim:
        raise UsageError(
            f"{who} got {both}, so pred has no axis {axis}; expected one score a class on it."
        )
    if pred.shape[axis] < 2:
        raise UsageError(
            f"{who} got {both}; expected two scores or more on axis {axis} of pred, one a class. "
            "For one score a sample, accuracy_multi, F1ScoreMulti and their like have a threshold."
        )
    shape = without(pred.shape, axis)
    if not _fits(shape, targ.shape):
        raise UsageError(
            f"{who} got {both}; with the classes of pred on axis {axis}, expected targ of shape "
            f"{shape}.{_better_axis(pred, targ)}"
        )
    return targ.reshape(shape)


def same_shape(who: str, pred: Tensor, targ: Tensor) -> Tensor:
    """`targ` in the shape of `pred`, which may differ by axes of length 1.

    Raises:
        UsageError: if they differ by more.
    """
    if _squeezed(pred.shape) != _squeezed(targ.shape):
        raise UsageError(
            f"{who} got pred {describe(pred)} and targ {describe(targ)}; expected one shape."
        )
    return targ.reshape(pred.shape)


def real(who: str, t: Tensor) -> Tensor:
    """`t` in a dtype to compute in: float32 or float64.

    Raises:
        UsageError: for complex numbers.
    """
    if t.is_complex():
        raise UsageError(f"{who} got a tensor {describe(t)}; expected real numbers.")
    return t if t.dtype == torch.float64 else t.float()


def above(who: str, pred: Tensor, thresh: float, sigmoid: bool) -> Tensor:
    """Whether each score is above `thresh`, after a sigmoid if `sigmoid`; bool."""
    scores = real(who, pred)
    return (scores.sigmoid() if sigmoid else scores) > thresh


def without(shape: torch.Size, axis: int) -> tuple[int, ...]:
    """`shape` without one of its axes."""
    axis %= len(shape)
    return (*shape[:axis], *shape[axis + 1 :])


def describe(t: Tensor) -> str:
    """Shape and dtype of a tensor in words."""
    return f"of shape {tuple(t.shape)} ({str(t.dtype).removeprefix('torch.')})"


def _fits(shape: tuple[int, ...], targ: torch.Size) -> bool:
    if _squeezed(shape) == _squeezed(targ):
        return True
    flat = len(_squeezed(shape)) <= 1 or len(_squeezed(targ)) <= 1
    return flat and math.prod(shape) == targ.numel()


def _squeezed(shape: tuple[int, ...]) -> list[int]:
    return [length for length in shape if length != 1]


def _better_axis(pred: Tensor, targ: Tensor) -> str:
    axes = [axis for axis in range(pred.ndim) if _fits(without(pred.shape, axis), targ.shape)]
    return f" With axis={axes[0]} they would fit." if axes else ""
