"""Splitters: functions from the items to (indices to train on, indices to validate on)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from treadle.errors import DataError, UsageError

__all__ = ["GrandparentSplitter", "RandomSplitter", "Splitter"]

Splitter = Callable[[Sequence[Any]], tuple[Sequence[int], Sequence[int]]]
"""What `DataBlock(splitter=)` takes: items -> (training indices, validation indices)."""


def GrandparentSplitter(
    train_name: str | tuple[str, ...] = "train", valid_name: str | tuple[str, ...] = "valid"
) -> Splitter:
    """Split files by the name of the folder two levels above: `train/cat/1.jpg`.

    Either argument may be a tuple of names. Files of other folders are in neither part. The
    splitter raises `DataError` where a part is empty; it names the folders that were found.

    >>> GrandparentSplitter(valid_name="val")(["d/train/cat/1.jpg", "d/val/cat/2.jpg"])
    ([0], [1])
    """

    def split(items: Sequence[Any]) -> tuple[list[int], list[int]]:
        names = [Path(item).parent.parent.name for item in items]
        parts = []
        for argument, wanted in (("train_name", train_name), ("valid_name", valid_name)):
            accepted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
            part = [index for index, name in enumerate(names) if name in accepted]
            if not part:
                found = ", ".join(repr(name) for name in sorted(set(names))) or "none"
                raise DataError(
                    f"GrandparentSplitter found no item under {argument}={wanted!r}; the folders "
                    f"two levels above the items are {found}. Give the right one as "
                    f"GrandparentSplitter({argument}=...)."
                )
            parts.append(part)
        return parts[0], parts[1]

    return split


def RandomSplitter(valid_pct: float = 0.2, seed: int | None = None) -> Splitter:
    """Validate on a random `valid_pct` (0 to 1) of the items, rounded down.

    With a `seed` the split depends on nothing else, and is the one that fastai makes of the same
    number of items; torch's global generator is left alone. Without one it is drawn from that.

    >>> RandomSplitter(0.5, seed=42)(["a", "b", "c", "d"])
    ([0, 1], [2, 3])
    """
    if not 0 <= valid_pct < 1:
        raise UsageError(
            f"RandomSplitter got valid_pct={valid_pct!r}; expected 0 <= valid_pct < 1."
        )

    def split(items: Sequence[Any]) -> tuple[list[int], list[int]]:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        order: list[int] = torch.randperm(len(items), generator=generator).tolist()
        cut = int(valid_pct * len(items))
        return order[cut:], order[:cut]

    return split
