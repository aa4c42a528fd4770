"""Batches go to a GPU one ahead, beside its work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

from treadle.interrupts import undivided

__all__ = ["on_device"]

Kept = TypeVar("Kept")
Element = torch.Tensor
Batches = Iterable[tuple[Kept, list[Element]]]


def on_device(batches: Batches[Kept], device: torch.device) -> Iterator[tuple[Kept, list[Element]]]:
    """The tensors of each of `batches` on `device`; what comes with them is handed on.

    To a CUDA device each is copied on a stream of its own, from pinned memory, while the caller
    works with the one before it.
    """
    if device.type == "cpu":  # where they are made
        yield from batches
    elif device.type != "cuda":
        for kept, batch in batches:
            yield kept, [element.to(device, non_blocking=True) for element in batch]
    else:
        yield from _one_ahead(batches, device)


def _one_ahead(
    batches: Batches[Kept], device: torch.device
) -> Iterator[tuple[Kept, list[Element]]]:
    side = torch.cuda.Stream(device)
    ahead: tuple[Kept, list[Element]] | None = None
    for kept, batch in batches:
        copied = _copied(batch, side, device)
        if ahead is not None:
            yield _ready(ahead, side, device)
        ahead = kept, copied
    if ahead is not None:
        yield _ready(ahead, side, device)


@undivided  # an interrupt must not leave later work on the side
def _copied(batch: list[Element], side: torch.cuda.Stream, device: torch.device) -> list[Element]:
    with torch.cuda.stream(side):
        return [element.to(device, non_blocking=True) for element in batch]


def _ready(
    ahead: tuple[Kept, list[Element]], side: torch.cuda.Stream, device: torch.device
) -> tuple[Kept, list[Element]]:
    current = torch.cuda.current_stream(device)
    current.wait_stream(side)  # the device waits, not the caller
    for element in ahead[1]:
        element.record_stream(current)  # its memory is not given to the next copy too soon
    return ahead
