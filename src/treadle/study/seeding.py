"""Chance, settled: the same seed gives the same initial weights and the same order of the data."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from treadle.interrupts import scoped


@scoped
def own_chance() -> Iterator[None]:
    """Whatever the block draws, the generators of Python, NumPy and torch are as before."""
    python, numpy = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch, on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rewind(dls: Any, seed: int) -> None:
    """Have the loaders draw what `seed` says, from the first epoch on: Treadle's, and those of
    torch that have a generator of their own. Others draw from torch's global one."""
    for dl in dls:
        state = dl.state_dict() if hasattr(dl, "state_dict") else {}
        if {"seed", "epoch", "batch"} <= state.keys():
            dl.load_state_dict({**state, "seed": seed, "epoch": 0, "batch": 0})
        for part in (dl, getattr(dl, "sampler", None)):
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)


def digest(model: nn.Module) -> str:
    """A fingerprint of all weights and buffers, bit by bit."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor) and not nn.parameter.is_lazy(tensor):
            plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(name.encode() + plain.numpy().tobytes())
    return found.hexdigest()[:16]
