"""From lists of transforms to the stages that run.

Each transform draws from a stream named after its class and its place among those of its class:
adding another kind of transform changes no draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import torch

from treadle.data.addressed import other_source
from treadle.data.describe import name_of
from treadle.data.foreign import Foreign, is_foreign
from treadle.data.geometry import Geometric
from treadle.data.lighting import Lighting
from treadle.data.normalize import Normalize
from treadle.data.resize import Resize
from treadle.data.samples import Each, ItemStage, Joint, Placed
from treadle.data.stages import AsFloat, BatchStage, Foreigner, Moved, Relit, Single
from treadle.data.transforms import BatchTransform, ItemTransform
from treadle.errors import UsageError

__all__ = ["Transforms", "batch_stages", "decoded", "item_stages", "listed"]

Transform = Any
"""A transform of ours, of torchvision's (`Foreign`), or a function of one argument."""

Transforms = Callable[..., Any] | Iterable[Callable[..., Any]] | None
"""What `item_tfms=` and `batch_tfms=` take: one transform, several, or none."""


def item_stages(transforms: Sequence[Transform]) -> list[ItemStage]:
    """One stage for each item transform. Raises `UsageError` for what is none.

    A `Resize` that comes first is given samples that are fitted already.
    """
    named = _streams("item", transforms, BatchTransform)
    return [_item_stage(t, stream, first=at == 0) for at, (t, stream) in enumerate(named)]


def _item_stage(transform: Transform, stream: str, first: bool) -> ItemStage:
    if isinstance(transform, Resize):
        return Placed(transform, stream, fitted=first)
    if isinstance(transform, Foreign):
        return Joint(transform, stream)
    return Each(transform, stream)


def batch_stages(transforms: Sequence[Transform]) -> list[BatchStage]:
    """The stages of batch transforms: uint8 to float first, then they, neighbours merged.

    Raises `UsageError` for what cannot run.
    """
    named = _streams("batch", transforms, ItemTransform)
    _check_order(transforms)
    stages: list[BatchStage] = [AsFloat()]
    for kind, members in groupby(named, key=lambda pair: _kind(pair[0])):
        group: list[Any] = list(members)
        if kind == "lighting":
            stages.append(Relit(group))
        elif isinstance(kind, int):
            stages += [
                Foreigner(t, stream) if isinstance(t, Foreign) else Single(t, stream)
                for t, stream in group
            ]
        else:
            stages.append(Moved(group))
    return stages


def decoded(transforms: Sequence[Transform], x: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) as they are to be shown, in [0, 1]: `decode` of each, last one first."""
    for transform in reversed(transforms):
        if isinstance(transform, BatchTransform | Foreign):
            x = transform.decode(x)
    return x


def listed(transforms: Transforms) -> list[Transform]:
    """The list that a transform, several, or None stand for; foreign ones are `Foreign` in it."""
    if transforms is None:
        return []
    given = [transforms] if callable(transforms) else list(transforms)
    return [Foreign(t) if is_foreign(t) and not isinstance(t, Foreign) else t for t in given]


Named = tuple[Transform, str]


def _streams(where: str, transforms: Iterable[Transform], misplaced: type) -> list[Named]:
    seen: Counter[str] = Counter()
    named: list[Named] = []
    for transform in transforms:
        argument, other = f"{where}_tfms", "item_tfms" if where == "batch" else "batch_tfms"
        if isinstance(transform, misplaced):
            raise UsageError(f"{transform!r} was given in {argument}; it belongs in {other}.")
        known = isinstance(transform, Foreign)
        if not known and (isinstance(transform, type) or not callable(transform)):
            raise UsageError(
                f"{transform!r} was given in {argument}; expected a transform or a function of one "
                "argument (an instance, not its class)."
            )
        kind = type(transform.transform if known else transform).__name__
        if not known and not isinstance(transform, ItemTransform | BatchTransform):
            _check_source(transform, argument)
        named.append((transform, f"{where}/{kind}/{seen[kind]}"))
        seen[kind] += 1
    return named


def _check_source(function: Transform, argument: str) -> None:
    """Refuse a function whose random numbers have no address: an epoch could not be repeated."""
    if (source := other_source(function)) is not None:
        raise UsageError(
            f"{name_of(function)} in {argument} draws from {source}, which all threads share: its "
            "numbers would depend on the workers. Draw from torch, or write a subclass of "
            "ItemTransform or BatchTransform that uses the `draws` it is handed."
        )


def _check_order(transforms: Sequence[Transform]) -> None:
    normalized = False
    for transform in transforms:
        normalized = normalized or isinstance(transform, Normalize)
        if normalized and isinstance(transform, Lighting):
            raise UsageError(
                f"{transform!r} comes after Normalize in batch_tfms, but works on values in "
                "[0, 1]. Put Normalize last."
            )


def _kind(transform: Transform) -> Any:
    """Equal for neighbours that can be merged; an int that no other has for the rest."""
    if isinstance(transform, Lighting):
        return "lighting"
    return transform.sampling if isinstance(transform, Geometric) else id(transform)
