"""Whether the processes of a run see the same data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any

from treadle.data.loaders import DataLoader
from treadle.data.order import InOrder
from treadle.data.table import Row
from treadle.errors import DataError
from treadle.world import World

__all__ = ["check_alike"]

_LOOKED_AT = 32
"""So many items, spread over the data set, tell it from others."""

_LETTERS = 200
"""So many of a text, from its end."""


def check_alike(loaders: Iterable[Any], world: World) -> None:
    """Raise `DataError` in all processes, with a rank that differs and in what, unless all hold
    the same loaders: as many samples, the same seed, batch size and epoch, the same classes and,
    looked at here and there, the same items."""
    if world.size == 1:
        return
    told = world.all([_known_of(loader) for loader in loaders])
    for rank, theirs in enumerate(told):
        if len(theirs) != len(told[0]):
            raise _unlike(rank, "number of loaders", len(theirs), len(told[0]))
        for place, (its, first) in enumerate(zip(theirs, told[0], strict=True)):
            for name in {**first, **its}:
                if its.get(name) != first.get(name):
                    part = ("training: ", "validation: ")[place] if place < 2 else f"{place}: "
                    raise _unlike(rank, part + name, its.get(name), first.get(name))


def _unlike(rank: int, what: str, there: Any, here: Any) -> DataError:
    return DataError(
        f"Rank {rank} has other data than rank 0 ({what} {there}, on rank 0 {here}). Give all "
        "processes the same files in the same order, and whatever is drawn before the first loader "
        "is made, such as a split, a seed."
    )


def _known_of(loader: Any) -> dict[str, Any]:
    """What tells a loader from another, by the words for it."""
    found: dict[str, Any] = {"loader of class": type(loader).__name__}
    with suppress(TypeError):  # it has no length, and may not know what it will be
        found["batches"] = len(loader)
    if not isinstance(loader, DataLoader):
        return found
    found |= {"samples": loader.n, "samples a batch": loader.total_bs}
    if loader.augment or not isinstance(loader.sampler, InOrder):
        found |= {"seed": loader.seed, "epoch": loader.epoch}
    vocab = getattr(loader.dataset, "vocab", None)
    if vocab is not None:
        text = repr(_plain(vocab)).encode("utf-8", "backslashreplace")
        found["classes with the digest"] = blake2b(text, digest_size=8).hexdigest()
    items = getattr(loader.dataset, "items", None)
    if isinstance(items, Sequence):
        for index in range(0, len(items), max(len(items) // _LOOKED_AT, 1)):
            found[f"item {index}"] = _plain(items[index])
    return found


def _plain(item: Any) -> Any:
    """What of an item is the same wherever the data lie: of a path the folder and the name; nothing
    of what is no text and no number."""
    if isinstance(item, str | os.PathLike):
        text = os.fsdecode(item).replace(os.sep, "/")
        return "/".join(text.split("/")[-2:])[-_LETTERS:]
    if isinstance(item, tuple | list | Row):
        return [_plain(item[place]) for place in range(len(item))]
    return repr(item) if isinstance(item, int | float) else type(item).__name__
