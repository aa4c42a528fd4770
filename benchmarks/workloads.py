"""The work of loop.py and data.py, the same for all libraries: no import of any but torch."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import Turn

Batches = list[tuple[Tensor, Tensor]]


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes; what was left lying about before is collected first."""
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# The loop around a small net

STEPS, LR = 2000, 1e-3


def net() -> nn.Module:
    """Two layers, 16-32-4, the same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def batches(count: int) -> Batches:
    """`count` batches of 64 points in 16 dimensions; the class is the largest of the first four."""
    x = torch.randn(count, 64, 16, generator=torch.Generator().manual_seed(0))
    return list(zip(x, x[..., :4].argmax(-1), strict=True))


def plain_loop(model: nn.Module, opt: Any, train: Batches, valid: Batches) -> float:
    """The loop as one would write it by hand; returns the validation loss."""
    model.train()
    for x, y in train:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
    model.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(model(x), y) for x, y in valid]
    return torch.stack(losses).mean().item()


def loop_turn(train: Callable[[], object], steps: int) -> dict[str, float]:
    """Microseconds a step of a training of `steps` steps.

    What it prints goes to a file, as under nohup: a terminal's bar would be measured with its
    terminal.
    """
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        return {"us a step": 1e6 * seconds(train) / steps}


def fused_adamw(params: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """What the loop by hand and the libraries without an optimizer of their own step with."""
    return torch.optim.AdamW(params, lr=LR, fused=True)


def by_hand(steps: int) -> Turn:
    """The plain loop with torch's fused AdamW, in whichever process this is called."""
    torch.set_num_threads(1)
    train, valid = batches(steps), batches(1)

    def turn() -> dict[str, float]:
        model = net()
        opt = fused_adamw(model.parameters())
        return loop_turn(lambda: plain_loop(model, opt, train, valid), steps)

    return turn


# The training loader

BATCH_SIZE, PRESIZE, SIZE, MIN_SCALE = 128, 160, 128, 0.5


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """`count` of `items`, evenly spread over them; all if there are no more."""
    if count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def loader_turn(make: Callable[[], Any]) -> dict[str, float]:
    """Images a second of fresh loaders: two epochs, each of the training loader and the other."""
    dls = make()
    return {
        "first epoch": images_a_second(dls.train),
        "first validation": images_a_second(dls.valid),
        "later epoch": images_a_second(dls.train),
        "validation": images_a_second(dls.valid),
    }


def images_a_second(loader: Iterable[Any]) -> float:
    """The rate at which `loader` hands out the images of one pass."""
    counts: list[int] = []
    took = seconds(lambda: counts.extend(len(xb) for xb, _ in loader))
    return sum(counts) / took
