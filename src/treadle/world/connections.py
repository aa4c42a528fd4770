"""The connections between the processes of a run: whether an error says that they broke, and how
to break them."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from treadle.errors import RankError

_SAID = ("gloo/", "Application timeout caused pair closure")  # gloo has no type for its errors
_TAG = 0x7EAD1E  # of a message that nobody sends


def is_broken(error: BaseException | None) -> bool:
    """Whether an error comes of a connection that broke or of a wait that was too long, and not of
    what this process did itself."""
    if isinstance(error, RankError):
        return is_broken(error.__cause__)
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(said in str(error) for said in _SAID)


def break_all() -> None:
    """Close this process's connections to all others, in every group, so that who waits for it
    learns of it at once. A call of this process that is under way in another thread ends too.

    Where the groups are let go of, connections stay open as long as anything holds on to one of
    them, such as a model in torch's DDP.
    """
    for group in list(dist.distributed_c10d._world.pg_map):
        if group.size() > 1:
            if torch.cuda.is_available():
                with suppress(RuntimeError):
                    group.abort()
            _break(group)


def _break(group: Any) -> None:
    """What gloo does when a wait is too long is to close all connections of the group. Where the
    one that is waited at is closed already, there is no wait."""
    backend = None
    with suppress(RuntimeError):  # it is for GPUs alone
        backend = group._get_backend(torch.device("cpu"))
    if backend is not None and backend.name() == "gloo":
        for other in {*range(group.size())} - {group.rank()}:
            with suppress(RuntimeError):
                backend.recv([torch.zeros(1)], other, _TAG).wait(timedelta(milliseconds=1))
