"""The contestants of optimizer.py, and the turns that they take, here or in a side of `peers.py`.

Each library is imported only where one of its contestants is made.
"""

from __future__ import annotations

import ctypes
import inspect
import time
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import Sample, Turn

LR, MOM, SQR_MOM, EPS, WD = 1e-3, 0.9, 0.99, 1e-5, 0.01
HYPERS: dict[str, Any] = {"lr": LR, "mom": MOM, "sqr_mom": SQR_MOM, "eps": EPS, "wd": WD}
LIKE_TORCH: dict[str, Any] = {"lr": LR, "betas": (MOM, SQR_MOM), "eps": EPS, "weight_decay": WD}
PARAMS_STREAMS = 3  # a step reads the parameter and the gradient, and writes the parameter
NUMBER = 4  # bytes of a float32
Make = Callable[[Any], Any]


# Making them


def _treadle(params: Any) -> Any:
    from treadle.optim import Adam

    return Adam(params, **HYPERS)


def _torch(**how: bool) -> Make:
    return lambda params: torch.optim.AdamW(params, **LIKE_TORCH, **how)


def _fastai(params: Any) -> Any:
    from fastai.optimizer import Adam

    return Adam(params, **HYPERS)


def _heavyball(params: Any) -> Any:
    from heavyball import AdamW

    # A gradient that is let go would be missing from the next step.
    return AdamW(params, **LIKE_TORCH, consume_grad=False)


def _optimi(params: Any) -> Any:
    from optimi import AdamW

    return AdamW(params, **LIKE_TORCH)


MAKE: dict[str, Make] = {
    "Treadle": _treadle,
    "torch fused": _torch(fused=True),
    "torch foreach": _torch(foreach=True),
    "torch loop": _torch(foreach=False),
    "fastai": _fastai,
    "HeavyBall": _heavyball,
    "optimi": _optimi,
}
FROM = {"fastai": "fastai", "HeavyBall": "heavyball", "optimi": "torch-optimi"}
"""The package of those that live in a side, as it is called where it is installed."""
MODULES = {
    "Treadle": "treadle.optim",
    "fastai": "fastai.optimizer",
    "HeavyBall": "heavyball",
    "optimi": "optimi",
}


def recipe(name: str, **given: Any) -> Make | None:
    """The recipe `name` of treadle.optim with its defaults; None if it is not there."""
    import treadle.optim

    make = getattr(treadle.optim, name, None)
    if make is None:
        return None
    if "lr" in inspect.signature(make).parameters:
        given = {"lr": LR, **given}
    return lambda params: make(params, **given)


@lru_cache(maxsize=1)
def _shared(shapes: tuple[tuple[int, ...], ...]) -> list[nn.Parameter]:
    """Parameters with random gradients. All contestants of a process move the same ones."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return params


def parameters(shapes: list[list[int]]) -> list[nn.Parameter]:
    """Those of the process for these shapes; others that it has had are let go."""
    return _shared(tuple(map(tuple, shapes)))


@lru_cache(maxsize=1)
def _torch_state(_: nn.Parameter) -> dict[Tensor, dict[str, Tensor]]:
    """The state of torch's three contestants, told apart by the first parameter. It is the same
    in all of them, and with GPT-2's numbers each copy of it takes a gigabyte."""
    return defaultdict(dict)


# Their turns


def timed_steps(opt: Any, repeat: int = 1) -> Sample:
    """Milliseconds of one of `repeat` steps. One before them is not timed: it brings back to the
    caches, as far as they reach, what the others have put out of them."""
    opt.step()
    start = time.perf_counter()
    for _ in range(repeat):
        opt.step()
    return {"ms": 1e3 * (time.perf_counter() - start) / repeat}


def later(contestant: str, shapes: list[list[int]], repeat: int, groups: int = 1) -> Turn:
    """A later step, of parameters that are spread evenly over `groups`."""
    params = parameters(shapes)
    apart = [{"params": params[i::groups]} for i in range(groups)]
    opt = MAKE[contestant](params if groups == 1 else apart)
    if isinstance(opt, torch.optim.AdamW):
        opt.state = _torch_state(params[0])
    return lambda: timed_steps(opt, repeat)


def after_work(contestant: str, shapes: list[list[int]]) -> Turn:
    """A step right behind work of torch on all cores, as after a backward pass."""
    opt = MAKE[contestant](parameters(shapes))
    work = torch.ones(1_000_000)

    def turn() -> Sample:
        opt.step()
        for _ in range(5):
            work.mul_(1.0)
        start = time.perf_counter()
        opt.step()
        return {"ms": 1e3 * (time.perf_counter() - start)}

    return turn


def first(contestant: str, shapes: list[list[int]]) -> Turn:
    """Making the optimizer, and the first step of it; a process can take this turn once.

    Importing the library is not timed, nor what any optimizer of torch imports when it is made.
    """
    params = parameters(shapes)
    import_module(MODULES.get(contestant, "torch.optim"))
    import_module("torch._dynamo")
    torch.ones(1_000_000).mul_(1.0)  # torch's threads are there before any first step

    def turn() -> Sample:
        start = time.perf_counter()
        MAKE[contestant](params).step()
        return {"ms": 1e3 * (time.perf_counter() - start)}

    return turn


def extra_memory(contestant: str, shapes: list[list[int]]) -> Turn:
    """Peak memory of a later step beyond what is there before it, in % of the parameters' bytes.

    Linux only. The side needs MALLOC_MMAP_THRESHOLD_ in its environment, small and so fixed:
    else malloc keeps what an earlier step has let go, and gives it to the later one unseen.
    """
    params = parameters(shapes)
    opt = MAKE[contestant](params)
    size = sum(p.numel() * p.element_size() for p in params)
    for _ in range(2):
        opt.step()

    def turn() -> Sample:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _memory("VmRSS")
        opt.step()
        return {"%": 100 * max(0, _memory("VmHWM") - before) / size}

    return turn


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


# The yardsticks


def copy_turn(numbers: int, add: bool) -> Turn:
    """GB a second of `copy_` (reads one, writes one) or `add_` (reads two, writes one) in torch.

    Both arrays together are as large as what Adam moves for `numbers` parameters, up to 1 GiB.
    """
    count = min(2 * numbers, 2**27)
    a, b = torch.zeros(count), torch.zeros(count)
    work: Callable[[Tensor], Tensor] = a.add_ if add else a.copy_
    size = NUMBER * count * (3 if add else 2)
    repeat = max(1, 2**22 // count)

    def turn() -> Sample:
        work(b)
        start = time.perf_counter()
        for _ in range(repeat):
            work(b)
        return {"GB/s": repeat * size / (time.perf_counter() - start) / 1e9}

    return turn


def streams(opt: Any) -> int:
    """How many arrays as large as the parameters a step of `opt` reads and writes.

    That is parameter, gradient and parameter again, and each stat of the state twice.
    """
    params = [p for group in opt.param_groups for p in group["params"]]
    state = sum(
        stat.numel()
        for p in params
        for stat in opt.state[p].values()
        if isinstance(stat, Tensor) and stat.numel() == p.numel()
    )
    return PARAMS_STREAMS + round(2 * state / sum(p.numel() for p in params))
