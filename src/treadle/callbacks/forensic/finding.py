"""What was found out about a number that is none, and how it is told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from treadle.loop.nested import map_tensors
from treadle.shards import local
from treadle.world import World


@dataclass
class NonFinite:
    """What is known of a number that is infinite or not a number.

    Attributes:
        what: "the loss", "a gradient", "a weight" or the name of a metric.
        epoch, batch: when, both counted from 0; None for `batch` if it was not in one.
        where: in words, which computation it came out of; empty if that was not found. Where there
            is no batch: when it was.
        module: the name of the module that it came out of, "" for the model itself; None if it was
            no module.
        parameters: by name, those that are not finite themselves or whose gradient is not.
        samples: which samples of the batch it concerns, counted from 0; empty if not known.
        indices: the same as indices of the data set, where the loader can tell.
        items: the same as the items there, files mostly.
        batch_size: how many samples the batch has; of several processes, that one's part of it that
            has found it.
    """

    what: str
    value: float
    epoch: int
    batch: int | None
    where: str = ""
    module: str | None = None
    parameters: list[str] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    batch_size: int = 0

    def __str__(self) -> str:
        if self.batch is None:
            return f"{self.what} is {self.value} {self.where}{self._of_parameters()}."
        found = self.where or "it did not come again when the batch was run once more"
        return (
            f"{self.what} became {self.value} at epoch {self.epoch}, batch {self.batch}: {found}"
            f"{self._of_samples()}{self._of_parameters()}."
        )

    def _of_samples(self) -> str:
        if not self.samples:
            return ""
        if len(self.samples) == self.batch_size > 1:
            return f", in all {self.batch_size} samples of the batch"
        said = f", in {_listed('sample', self.samples)} of the batch"
        if self.indices:
            named = f": {_first(self.items)}" if self.items else ""
            said += f" ({_listed('item', self.indices)} of the data{named})"
        return said

    def _of_parameters(self) -> str:
        if not self.parameters:
            return ""
        what = "the gradient of " if self.what == "a gradient" else ""
        return f"; {what}{_first(self.parameters)} is not finite"


def most_telling(found: Sequence[NonFinite]) -> NonFinite:
    """What several processes have found, each in its part of a batch, as one: that of the process
    where it began, if one of them is, with the parameters that any of them has found."""
    best = max(
        found,
        key=lambda f: (
            f.module is not None or f.samples != [],
            f.where.startswith("it began"),
            f.where != "",
        ),
    )
    named = [name for each in (best, *found) for name in each.parameters]
    return replace(best, parameters=list(dict.fromkeys(named)))


def _first(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")


def _listed(what: str, numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"{what}{'s' * (len(numbers) > 1)} {shown}"


def floats(batch: Any) -> list[Tensor]:
    """The tensors of floating numbers in nested tuples, lists and dicts."""
    found: list[Tensor] = []
    map_tensors(lambda t: found.append(t) if t.is_floating_point() else None, batch)
    return found


def is_finite(t: Tensor) -> bool:
    return bool(local(t).isfinite().all())


def surely_finite(tensors: list[Tensor]) -> bool:
    """Whether all numbers in this process are finite, by sums of squares: these are quick, but may
    overflow by themselves, so that False is no proof. Waits for the device, once."""
    if not tensors:
        return True
    norms = torch._foreach_norm(list(map(local, tensors)))
    return math.isfinite(torch.stack([norm.to(norms[0].device) for norm in norms]).sum())


def spoilt_weights(model: nn.Module, world: World) -> dict[str, float]:
    """The parameters that are not finite and the buffers with a NaN: the first such number of each,
    by name. An infinity in a buffer may be a mask. Waits for the device, and for the other
    processes, which get the same."""
    return {name: value for found in world.all(_spoilt(model)) for name, value in found.items()}


def _spoilt(model: nn.Module) -> dict[str, float]:
    params = {name: local(p).detach() for name, p in model.named_parameters()}
    buffers = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    if surely_finite([*params.values(), *buffers.values()]):
        return {}
    bad = {name: ~p.isfinite() for name, p in params.items()}
    bad |= {name: b.isnan() for name, b in buffers.items()}
    spoilt = [name for name, where in bad.items() if where.any()]
    return {name: float((params | buffers)[name][bad[name]][0]) for name in spoilt}


def rows(t: Tensor, n: int) -> list[int]:
    """The samples with a number that is not finite, if `n` samples are the first axis."""
    if t.ndim == 0 or len(t) != n:
        return []
    bad: list[int] = (~t.detach().isfinite()).reshape(n, -1).any(1).nonzero().flatten().tolist()
    return bad


def spread(what: str, tensors: Iterable[Tensor]) -> str:
    """From where to where their numbers go, in words."""
    numbers = [local(t).detach() for t in tensors if local(t).numel()]
    if not numbers:
        return ""
    low, high = min(float(t.min()) for t in numbers), max(float(t.max()) for t in numbers)
    return f", {what} from {low:.4g} to {high:.4g}"
