"""A share of the model in every process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor, nn

from treadle.distributed.several import Several
from treadle.loop.training import TrainingLoop

_BLOCK = 1_000_000
"""So many entries are worth a message of their own."""


class FSDP(Several):
    """Every process has a share of each parameter, of its gradient and of the optimizer's state;
    the parameters of a block are gathered while it computes (torch's `fully_shard`, the second
    fully sharded data parallel; arXiv 2304.11277).

    The model is changed in place when its optimizer is made: its parameters are DTensors from then
    on, sharded along their first dimension. Whatever runs the model, validation and `predict` too,
    is to be called in all processes.

    Args:
        sync_bn: as for `Several`.
        blocks: which modules are gathered one at a time, beside what is left of the model; by
            default the elements of each `nn.ModuleList` and `nn.Sequential` with a million entries
            that are in no inner block, if no parameter of theirs is used elsewhere.
    """

    name = "fsdp"

    def __init__(
        self, sync_bn: bool = False, blocks: Callable[[nn.Module], bool] | None = None
    ) -> None:
        super().__init__(sync_bn)
        self.blocks = blocks

    def spread(self, loop: TrainingLoop) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        model = loop.model
        if isinstance(model, FSDPModule):
            return
        if loop.device is not None:
            model.to(loop.device)
        for p in model.parameters():
            dist.broadcast(p.detach(), 0)
        kind = "cpu" if loop.device is None else loop.device.type
        mesh = init_device_mesh(kind, (self.world.size,))
        inner = [module for module in model.modules() if module is not model]
        chosen = _blocks(model) if self.blocks is None else list(filter(self.blocks, inner))
        for block in sorted(chosen, key=inner.index, reverse=True):  # inner ones first
            fully_shard(block, mesh=mesh)
        # else its own parameters stay gathered after a forward pass that no backward pass follows
        fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _blocks(model: nn.Module) -> list[nn.Module]:
    elements = [
        element
        for holder in model.modules()
        if isinstance(holder, nn.ModuleList | nn.Sequential)
        for element in holder
        if element is not model
    ]
    places = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
    found: list[nn.Module] = []
    taken = set[Tensor]()
    for element in reversed(elements):
        inside = Counter(p for m in element.modules() for p in m.parameters(recurse=False))
        own = {p: n for p, n in inside.items() if p not in taken}
        is_alone = all(places[p] == n for p, n in own.items())
        if is_alone and sum(p.numel() for p in own) >= _BLOCK:
            found.append(element)
            taken.update(own)
    return found
