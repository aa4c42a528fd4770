"""What a trial run must put back: model, optimizer, scaler, random numbers, place in the data."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from treadle.interrupts import scoped
from treadle.loop.training import TrainingLoop


@scoped
def preserved(loop: TrainingLoop) -> Iterator[None]:
    """Whatever the block trains, the loop is bit-for-bit what it was when the block ends, however
    it ends: weights, buffers, gradients, modes, optimizer, loss scaler, the generators of Python,
    NumPy, torch and its loaders, and the epoch that each loader will draw next.

    The copy is held in memory, on the tensors' own devices.
    """
    model, opt = loop.model, loop.opt
    weights = {name: t.detach().clone() for name, t in model_tensors(model)}
    grads = [(p, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    trainable = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    opt_state = copy.deepcopy(opt.state_dict()) if opt is not None else None
    precision, scaler_state = loop.precision, copy.deepcopy(loop.precision.scaler.state_dict())
    fields = {name: getattr(loop, name) for name in _LOOP_FIELDS}
    loaders = [(dl, dl.state_dict()) for dl in loop.dls if hasattr(dl, "load_state_dict")]
    drawn = all_generators(loop)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, t in model_tensors(model):
                t.copy_(weights[name])
        for p, grad in grads:
            p.grad = grad
        for p, requires_grad in trainable:
            p.requires_grad_(requires_grad)
        for module, training in modes:
            module.training = training
        loop.opt = opt
        if opt is not None:
            opt.load_state_dict(opt_state)
        loop.precision = precision
        if scaler_state:
            loop.precision.scaler.load_state_dict(scaler_state)
        for name, value in fields.items():
            setattr(loop, name, value)
        for dl, state in loaders:
            dl.load_state_dict(state)
        set_all_generators(loop, drawn)


_LOOP_FIELDS = (
    "dl xb yb pred _loss _loss_grad training n_epoch n_iter epoch iter updates planned_updates "
    "window"
).split()


def model_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name, also those that `state_dict` leaves out; a tied one once."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def generators() -> dict[str, Any]:
    """The states of the generators of Python, NumPy and torch."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_generators(states: Mapping[str, Any]) -> None:
    """Put the generators where `generators` found them; torch's, if they are there."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    if "torch" in states:
        torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


def all_generators(loop: TrainingLoop) -> dict[str, Any]:
    """The states of the global generators, and of those that torch's loaders have of their own."""
    return {**generators(), "loaders": [g.get_state() for g in _own_generators(loop.dls)]}


def set_all_generators(loop: TrainingLoop, states: Mapping[str, Any]) -> None:
    """Put the generators where `all_generators` found them."""
    for generator, state in zip(_own_generators(loop.dls), states["loaders"], strict=False):
        generator.set_state(state)
    set_generators(states)


def _own_generators(dls: Any) -> list[torch.Generator]:
    parts = [part for dl in dls for part in (dl, getattr(dl, "sampler", None))]
    own = [getattr(part, "generator", None) for part in parts]
    return [generator for generator in own if isinstance(generator, torch.Generator)]
