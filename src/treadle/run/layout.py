"""Which file of a checkpoint of several processes has which part of which tensor: `layout.json`.

    {"tensors": {"model": {"0.weight": ["F32", [8, 4], [[0, [0, 0], [4, 4]],
                                                        [1, [4, 0], [4, 4]]]]}},
     "own": {"1": {"state": {"generators.torch": ["U8", [5056]]}}},
     "tied": {"0": {"model": {"head.weight": "embed.weight"}}}}

Of each tensor: dtype, shape, and its pieces, each with the rank in whose file it is, where it
begins and how large it is. In the file it has the tensor's name. What was the same in all processes
is there once; what a process had that differs from what rank 0 had is its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from treadle.errors import DataError
from treadle.run.tensor_file import DTYPES

_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}
_MOST_DIMS = 64


@dataclass(frozen=True)
class Piece:
    """A part of a tensor, in the file of `rank`."""

    rank: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Laid:
    """A tensor, and where its pieces are."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


Parts = dict[str, dict[str, Laid]]
Ties = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Layout:
    """All tensors of a checkpoint: `shared` by part and name, `own` by rank too. `tied` says by
    rank, for rank 0 and those that differ from it, which name stands for which other one."""

    shared: Parts = field(default_factory=dict)
    own: dict[int, Parts] = field(default_factory=dict)
    tied: dict[int, Ties] = field(default_factory=dict)

    def seen_by(self, rank: int) -> tuple[Parts, Ties]:
        """What the process of this rank had, and what stands for what."""
        own = self.own.get(rank, {})
        both = self.tied.get(0, {}), self.tied.get(rank, {})
        ties = {part: both[0].get(part, {}) | both[1].get(part, {}) for part in both[0] | both[1]}
        parts = {
            part: {
                name: laid
                for name, laid in (self.shared.get(part, {}) | own.get(part, {})).items()
                if name not in ties.get(part, {}) or name in own.get(part, {})
            }
            for part in self.shared.keys() | own.keys()
        }
        return parts, ties


def to_bytes(layout: Layout) -> bytes:
    """The layout as a file."""
    plain = {
        "tensors": _plain_parts(layout.shared),
        "own": {str(rank): _plain_parts(parts) for rank, parts in layout.own.items()},
        "tied": {str(rank): ties for rank, ties in layout.tied.items()},
    }
    return json.dumps(plain, separators=(",", ":")).encode()


def from_bytes(data: bytes, where: str) -> Layout:
    """The layout in a file. Raises DataError, naming `where`, if it is none."""
    try:
        plain = json.loads(data)
        return Layout(
            _parts(plain["tensors"]),
            {int(rank): _parts(parts) for rank, parts in plain["own"].items()},
            {int(rank): _ties(ties) for rank, ties in plain["tied"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{where} is no layout of a checkpoint ({type(error).__name__}: {str(error)[:200]})."
        ) from error


def _plain_parts(parts: Parts) -> dict[str, Any]:
    return {
        part: {
            name: [
                DTYPES[laid.dtype],
                list(laid.shape),
                [[piece.rank, list(piece.offsets), list(piece.sizes)] for piece in laid.pieces],
            ]
            for name, laid in named.items()
        }
        for part, named in parts.items()
    }


def _parts(plain: Mapping[str, Any]) -> Parts:
    return {
        part: {name: _laid(*entry) for name, entry in named.items()}
        for part, named in plain.items()
    }


def _laid(dtype: str, shape: Any, pieces: Any) -> Laid:
    found = tuple(Piece(_count(rank), _counts(o), _counts(n)) for rank, o, n in pieces)
    laid = Laid(_BY_NAME[dtype], _counts(shape), found)
    for piece in found:
        if not len(laid.shape) == len(piece.offsets) == len(piece.sizes) <= _MOST_DIMS:
            raise ValueError("a piece has not the dimensions of its tensor")
        ends = (o + n for o, n in zip(piece.offsets, piece.sizes, strict=True))
        if any(end > size for end, size in zip(ends, laid.shape, strict=True)):
            raise ValueError("a piece is not within its tensor")
    if sum(math.prod(piece.sizes) for piece in found) != math.prod(laid.shape):
        raise ValueError("the pieces are not the whole of their tensor")
    return laid


def _counts(plain: Any) -> tuple[int, ...]:
    if not isinstance(plain, list):
        raise ValueError(f"{str(plain)[:40]} is no list of sizes")
    return tuple(map(_count, plain))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{str(value)[:40]} is not a count")
    return value


def _ties(plain: Mapping[str, Any]) -> Ties:
    ties = {part: dict(named) for part, named in plain.items()}
    if not all(isinstance(same, str) for named in ties.values() for same in named.values()):
        raise ValueError("a name is tied to something else than a name")
    return ties
