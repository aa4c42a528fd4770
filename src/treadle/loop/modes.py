"""Modes that torch and a model are in, and that whoever leaves in the middle may leave behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def modes_put_back(model: nn.Module, device_type: str) -> Iterator[None]:
    """However the block is left, gradients are recorded and autocast is on or off as before; and
    if it is left by an exception, each module is in training or evaluation mode as before.

    torch's own contexts do the same, but may themselves be interrupted in the middle.
    """
    modules = [(module, module.training) for module in model.modules()]
    grad = torch.is_grad_enabled()
    cache, nesting = torch.is_autocast_cache_enabled(), _autocast_nesting()
    casts = [
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in {"cpu", device_type}
    ]
    try:
        yield
    except BaseException:
        for module, training in modules:
            module.training = training
        raise
    finally:
        torch.set_grad_enabled(grad)
        torch.set_autocast_cache_enabled(cache)
        for device, enabled, dtype in casts:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        _set_autocast_nesting(nesting)


def _autocast_nesting() -> int:
    """How many autocast contexts are open. Weights that were cast are kept until none is."""
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _set_autocast_nesting(wanted: int) -> None:
    while _autocast_nesting() > wanted:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
