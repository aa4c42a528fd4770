"""More than one process: how a model is spread over them, and what happens when one fails."""

from __future__ import annotations

from treadle.distributed.ddp import DDP
from treadle.distributed.fsdp import FSDP
from treadle.distributed.several import Several
from treadle.errors import UsageError, nearest
from treadle.loop.parallel import Parallel
from treadle.world import world

__all__ = ["DDP", "FSDP", "Several", "as_parallel"]


def as_parallel(given: str | Parallel | None) -> Parallel:
    """The strategy that a name means; None is `DDP` where there are several processes. In one
    process there is nothing to share, whatever is given.

    Raises:
        UsageError: for a name that is none.

    >>> as_parallel("ddp").name
    'none'
    """
    kinds = {"none": Parallel, "ddp": DDP, "fsdp": FSDP}
    if isinstance(given, str) and given not in kinds:
        raise UsageError(f"parallel={given!r} is unknown; {nearest(given, kinds)}")
    if world().size == 1:
        return Parallel()
    return given if isinstance(given, Parallel) else kinds[given or "ddp"]()
