"""From lists of transforms to the stages that run.

Neighbouring geometric transforms become one stage (one matrix a sample, one sampling), and so do
neighbouring lighting transforms (one pass). Each transform draws from a stream named after its
class and its place among those of its class: adding another kind of transform changes no draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch

from treadle.data.describe import name_of
from treadle.data.draws import Draws
from treadle.data.geometry import Geometric
from treadle.data.lighting import Lighting, relight
from treadle.data.normalize import Normalize
from treadle.data.sampling import resample
from treadle.data.transforms import BatchTransform, ItemTransform
from treadle.errors import UsageError

__all__ = ["Stage", "Transforms", "batch_stages", "decoded", "item_stages", "listed"]

Transforms = Callable[..., Any] | Iterable[Callable[..., Any]] | None
"""What `item_tfms=` and `batch_tfms=` take: one transform, several, or none."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of a pipeline: its name in messages, and what it does with (value, draws)."""

    name: str
    run: Callable[[Any, Draws | None], Any]


def item_stages(transforms: Sequence[Callable[..., Any]]) -> list[Stage]:
    """One stage for each item transform. Raises `UsageError` for what is none."""
    return [_single(t, stream) for t, stream in _streams("item", transforms, BatchTransform)]


def batch_stages(transforms: Sequence[Callable[..., Any]]) -> list[Stage]:
    """The stages of batch transforms: uint8 to float first, then they, neighbours merged.

    Raises `UsageError` for what cannot run.
    """
    named = _streams("batch", transforms, ItemTransform)
    _check_order(transforms)
    stages = [Stage("uint8 to float in [0, 1]", _as_float)]
    for kind, members in groupby(named, key=lambda pair: _kind(pair[0])):
        group = list(members)
        if isinstance(kind, int):
            stages += [_single(t, stream) for t, stream in group]
        else:
            name = " + ".join(type(t).__name__ for t, _ in group)
            stages.append(Stage(name, (_relit if kind == "lighting" else _moved)(group)))
    return stages


def decoded(transforms: Sequence[Callable[..., Any]], x: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) as they are to be shown, in [0, 1]: `decode` of each, last one first."""
    for transform in reversed(transforms):
        if isinstance(transform, BatchTransform):
            x = transform.decode(x)
    return x


def listed(transforms: Transforms) -> list[Callable[..., Any]]:
    """The list that a transform, several, or None stand for."""
    if transforms is None:
        return []
    return [transforms] if callable(transforms) else list(transforms)


Named = tuple[Callable[..., Any], str]


def _streams(where: str, transforms: Iterable[Callable[..., Any]], misplaced: type) -> list[Named]:
    seen: Counter[str] = Counter()
    named: list[Named] = []
    for transform in transforms:
        argument, other = f"{where}_tfms", "item_tfms" if where == "batch" else "batch_tfms"
        if isinstance(transform, misplaced):
            raise UsageError(f"{transform!r} was given in {argument}; it belongs in {other}.")
        if isinstance(transform, type) or not callable(transform):
            raise UsageError(
                f"{transform!r} was given in {argument}; expected a transform or a function of one "
                "argument (an instance, not its class)."
            )
        kind = type(transform).__name__
        named.append((transform, f"{where}/{kind}/{seen[kind]}"))
        seen[kind] += 1
    return named


def _check_order(transforms: Sequence[Callable[..., Any]]) -> None:
    normalized = False
    for transform in transforms:
        normalized = normalized or isinstance(transform, Normalize)
        if normalized and isinstance(transform, Lighting):
            raise UsageError(
                f"{transform!r} comes after Normalize in batch_tfms, but works on values in "
                "[0, 1]. Put Normalize last."
            )


def _as_float(x: torch.Tensor, draws: Draws | None) -> torch.Tensor:
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def _single(transform: Callable[..., Any], stream: str) -> Stage:
    if isinstance(transform, ItemTransform | BatchTransform):
        return Stage(repr(transform), lambda x, draws: transform(x, draws and draws.named(stream)))
    return Stage(name_of(transform), lambda x, draws: transform(x))


def _kind(transform: Callable[..., Any]) -> Any:
    """Equal for neighbours that can be merged; an int that no other has for the rest."""
    if isinstance(transform, Lighting):
        return "lighting"
    return transform.sampling if isinstance(transform, Geometric) else id(transform)


def _moved(group: Sequence[Named]) -> Callable[[torch.Tensor, Draws | None], torch.Tensor]:
    geometric = [(cast(Geometric, transform), stream) for transform, stream in group]

    def run(x: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        size = (x.shape[-2], x.shape[-1])
        matrices = np.eye(3)[None]
        for transform, stream in geometric:
            matrices = matrices @ transform.matrices(draws and draws.named(stream), size)
            size = transform.size or size
        return resample(x, matrices, size, geometric[0][0].sampling)

    return run


def _relit(group: Sequence[Named]) -> Callable[[torch.Tensor, Draws | None], torch.Tensor]:
    lights = [(cast(Lighting, transform), stream) for transform, stream in group]

    def run(x: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        if draws is None:
            return x
        slope, offset = np.ones(len(draws)), np.zeros(len(draws))
        for transform, stream in lights:
            a, b = transform.drawn(draws.named(stream))
            slope, offset = a * slope, a * offset + b
        return relight(x, slope, offset)

    return run
