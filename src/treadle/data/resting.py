"""What torchvision's transforms are made of, and what is left of them in validation.

They are known by the names of their classes, so that torchvision need not be imported. In
validation nothing is random:

- what acts only at random is left out: flips, rotations, colours, erasing, noise, AutoAugment and
  its like, RandomApply with p < 1 whole. With p=1, or a range of one value, some of these are not
  random; then they stay.
- what also brings the size takes the middle of what it would draw: RandomCrop is centred and
  without its padding, RandomShortestSize and RandomResize take the middle size, ScaleJitter the
  scale 1, RandomResizedCrop the largest centred part within its range of ratios.
- RandomOrder keeps the order of its list; RandomChoice is left out if all it chooses from would be,
  and is an error otherwise.
- everything else is run as it is. If it is random after all, as a transform of the user's own may
  be, it draws the same numbers for every image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import nn

from treadle.data.addressed import middles, other_source
from treadle.errors import UsageError

__all__ = ["at_rest", "leaves", "name_in_torchvision", "one_line", "refuse", "version"]

Transform = Callable[..., Any]

_WITH_P = set(
    "RandomHorizontalFlip RandomVerticalFlip RandomGrayscale RandomInvert RandomPosterize "
    "RandomSolarize RandomAdjustSharpness RandomAutocontrast RandomEqualize".split()
)
"""Not random with p=1."""

_WITH_RANGE = {"GaussianBlur": "sigma", "JPEG": "quality", "RandomRotation": "degrees"}
"""Not random where this range is one value."""

_RANDOM = set(
    "AugMix AutoAugment ColorJitter ElasticTransform GaussianNoise RandAugment RandomAffine "
    "RandomChannelPermutation RandomErasing RandomIoUCrop RandomPerspective "
    "RandomPhotometricDistort RandomZoomOut TrivialAugmentWide".split()
)

_SIZED: dict[str, dict[str, Any]] = {
    "RandomCrop": {"padding": None},
    "RandomResizedCrop": {"scale": (4.0, 4.0)},  # none fits: torchvision then takes the centred one
    "RandomResize": {},
    "RandomShortestSize": {},
    "ScaleJitter": {"scale_range": (1.0, 1.0)},
}
"""What is set before the middles are taken."""

_REFUSED = {
    "CutMix": "it mixes samples and their labels. Give the learner Treadle's cbs=CutMix() instead.",
    "MixUp": "it mixes samples and their labels. Give the learner Treadle's cbs=MixUp() instead.",
    "SanitizeBoundingBoxes": "it removes boxes and not their classes, which are another element of "
    "the sample. Leave it out: boxes of which nothing is left are NaN.",
    "SanitizeKeyPoints": "it removes points, and samples with different numbers of points make no "
    "batch. Leave it out: points outside the frame keep their coordinates.",
    "ConvertBoundingBoxFormat": "boxes stay (left, top, right, bottom) up to the model. Leave it "
    "out.",
}


def version(transform: Transform) -> int:
    """1 or 2 for a transform of torchvision.transforms or .v2 or a subclass of one, else 0."""
    modules = [kind.__module__ for kind in type(transform).__mro__]
    if any(module.startswith("torchvision.transforms.v2") for module in modules):
        return 2
    return int(any(module.startswith("torchvision.transforms") for module in modules))


def name_in_torchvision(transform: Transform) -> str:
    """The name of its class, if that is torchvision's own; else ""."""
    own = type(transform).__module__.startswith("torchvision.transforms")
    return type(transform).__name__ if own else ""


def leaves(transform: Transform) -> Iterator[Transform]:
    """The transforms that a nest of containers holds, in order; or the one that is no container."""
    parts = _parts(transform)
    if parts is None:
        yield transform
    else:
        for part in parts:
            yield from leaves(part)


def one_line(transform: Transform) -> str:
    """How messages call it: the name of a function, or the repr in one line.

    >>> one_line(nn.Sequential(nn.Identity()))
    'Sequential((0): Identity())'
    """
    name = getattr(transform, "__qualname__", None)
    return (
        str(name)
        if name
        else " ".join(repr(transform).split()).replace("( ", "(").replace(" )", ")")
    )


def refuse(transform: Transform) -> None:
    """Raise `UsageError` for a nest of transforms of which some cannot be run at all."""
    old = name_in_torchvision(transform) in ("RandomOrder", "RandomChoice")
    if old and version(transform) == 1:
        name = type(transform).__name__
        raise UsageError(
            f"torchvision.transforms.{name} draws from Python's random module, whose numbers have "
            f"no address: an image would be augmented otherwise in each run. "
            f"torchvision.transforms.v2.{name} draws from torch; take that."
        )
    for part in _parts(transform) or ():
        refuse(part)
    name = name_in_torchvision(transform)
    if name in _REFUSED:
        raise UsageError(f"{name} cannot be an item or batch transform: {_REFUSED[name]}")
    function = getattr(transform, "lambd", transform) if name == "Lambda" else transform
    if source := other_source(function):
        raise UsageError(
            f"{one_line(function)} draws from {source}, whose numbers have no address: an image "
            "would be augmented otherwise in each run and each worker. Draw from torch, "
            "or write an ItemTransform, which is handed its numbers."
        )


def at_rest(transform: Transform) -> Transform | None:
    """What is run of a transform in validation; None if nothing is."""
    name, parts = name_in_torchvision(transform), _parts(transform)
    if name == "RandomChoice":
        _check_choice(transform)
        return None
    if parts is not None:
        never = name == "RandomApply" and transform.p < 1  # type: ignore[attr-defined]
        return None if never else _in_turn([at_rest(part) for part in parts])
    if name in _SIZED:
        still = copy.copy(transform)
        for attribute, value in _SIZED[name].items():
            setattr(still, attribute, value)
        return partial(_in_the_middle, still)
    return None if _acts_at_random(transform, name) else transform


def _parts(transform: Transform) -> list[Transform] | None:
    """What a container holds; None for what is none."""
    if name_in_torchvision(transform) in ("Compose", "RandomApply", "RandomChoice", "RandomOrder"):
        return list(transform.transforms)  # type: ignore[attr-defined]
    if type(transform) is nn.Sequential or type(transform) is nn.ModuleList:
        return [*transform]  # not a subclass: that may do other things with what it holds
    return None


def _acts_at_random(transform: Transform, name: str) -> bool:
    if name in _WITH_P:
        return bool(transform.p < 1)  # type: ignore[attr-defined]
    if name in _WITH_RANGE:
        low, high = getattr(transform, _WITH_RANGE[name])
        return bool(low != high)
    return name in _RANDOM


def _check_choice(transform: Transform) -> None:
    left = [part for part in _parts(transform) or () if at_rest(part) is not None]
    if left:
        raise UsageError(
            f"RandomChoice chooses among others from {one_line(left[0])}, which is not left out in "
            "validation, so what validation images should go through is open. Write an "
            "ItemTransform whose draws are None in validation, or choose among transforms that "
            "only act at random."
        )


def _in_turn(steps: list[Transform | None]) -> Transform | None:
    kept = [step for step in steps if step is not None]
    return partial(_one_by_one, kept) if kept else None


def _one_by_one(steps: list[Transform], value: Any) -> Any:
    for step in steps:
        value = step(value)
    return value


def _in_the_middle(transform: Transform, value: Any) -> Any:
    with middles():
        return transform(value)
