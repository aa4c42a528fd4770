"""Are the optimizer's GPU kernels right, and how fast are they beside torch's?

It needs a CUDA device. There it checks every recipe in four dtypes, over three steps, against the
reference engine in float64. Then AdamW, Lamb, torch's fused and capturable AdamW and a copy of as
many bytes as AdamW moves (7 arrays of float32) take turns, timed by events on the device: a turn is
one call that is not timed, then 5 that are (50 on small tensors). The host's time is that of the
calls alone. "Gradients moved" is a step whose gradients lie elsewhere than in the step before.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench import figures
from common import Report, Sample, Turn, interleave, slugged, versions
from parameter_sets import SETS, ParameterSet
from recipe_steps import found
from stepping import LIKE_TORCH, MAKE, NUMBER, Make, recipe, streams

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIGNS = ("Lion",)
"""These go by the sign of a sum, and with 16 bits that is often one of rounding alone."""
SHAPES = ((), (7,), (64, 33), (4096,), (300, 1003))
LIMITS = {4: 16.0, 8: 16.0, 2: 0.51}
"""By the bytes of a number, how many units in the last place of 1 + |x| it may be off. What is kept
in 16 bits is computed in float32 and rounded once."""
SETS_TIMED = ("small", "resnet34", "gpt2", "vit")
SHARE = 0.85
"""Of the bandwidth of a copy, what a step is to reach where memory decides."""
CONTESTANTS: dict[str, Make] = {
    "Treadle AdamW": MAKE["Treadle"],
    "torch fused": MAKE["torch fused"],
    "torch capturable": lambda params: torch.optim.AdamW(params, **LIKE_TORCH, capturable=True),
}
COPY = "device copy"


# ---- are they right?


def recipes() -> dict[str, Make]:
    """All whose work is not products of matrices."""
    schedule_free = recipe("ScheduleFreeAdamW")
    assert schedule_free is not None
    return {"AdamW": MAKE["Treadle"], "ScheduleFreeAdamW": schedule_free, **found()}


def check(report: Report, make: Make, name: str, dtype: torch.dtype) -> bool:
    """Three steps of a recipe; before each the float64 reference takes over what it is given."""
    from treadle.optim.engine import Engine

    draw = torch.Generator("cuda").manual_seed(0)
    start = [torch.randn(s, generator=draw, device="cuda").to(dtype) for s in SHAPES]
    start.append(torch.randn(4099, generator=draw, device="cuda").to(dtype)[1:])  # not aligned
    ours = make([nn.Parameter(t) for t in start])
    exact = make([nn.Parameter(_double(t)) for t in start])
    exact._engine = Engine("reference")
    pairs = list(zip(ours.param_lists[0], exact.param_lists[0], strict=True))
    worst = 0.0
    for _ in range(3):
        for p, q in pairs:
            p.grad = torch.randn(p.shape, generator=draw, device="cuda").to(dtype)
            q.data.copy_(p.data)
            q.grad = _double(p.grad)
            for key, value in ours.state[p].items():
                exact.state[q][key] = _double(value) if isinstance(value, Tensor) else value
        ours.step()
        exact.step()
        worst = max(worst, *(_off(p, q) for p, q in pairs))
        for p, q in pairs:
            stats = exact.state[q]
            tensors = [k for k, v in ours.state[p].items() if isinstance(v, Tensor)]
            worst = max([worst, *(_off(ours.state[p][k], stats[k]) for k in tensors)])
    report.add(name, f"largest error in {str(dtype)[6:]}, units in the last place", [worst])
    right = worst <= LIMITS[dtype.itemsize]
    if not right:
        report.note(f"{name} in {dtype} is off by {worst:.3g} units in the last place.")
    if not compiled(ours):
        report.note(f"{name} in {dtype} did not run in Triton kernels.")
    return right and compiled(ours)


def _double(t: Tensor) -> Tensor:
    return t.detach().to(torch.float64, copy=True)


def _off(found: Tensor, exact: Tensor) -> float:
    unit = torch.finfo(found.dtype).eps * (1 + exact.detach().abs())
    off = (found.detach().double() - exact.detach()).abs() / unit
    return float(off.nan_to_num(nan=torch.inf).max())


def compiled(opt: Any) -> bool:
    """Whether all parameters are stepped by Triton kernels."""
    from treadle.optim.engine.triton_launch import TritonLaunch

    plan = opt._engine._plan
    launches = [launch for bucket in plan.buckets for launch in bucket.launches.values()]
    return not plan.loose and all(isinstance(launch, TritonLaunch) for launch in launches)


# ---- how fast are they?


def first_step() -> float:
    """Seconds of making the optimizer and of its first step, all kernels to be compiled."""
    params = parameters(SETS["small"])
    torch.cuda.synchronize()
    start = time.perf_counter()
    MAKE["Treadle"](params).step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def parameters(of: ParameterSet) -> list[nn.Parameter]:
    """Those of a set, with gradients."""
    params = [nn.Parameter(torch.randn(shape, device="cuda")) for shape in of.shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def timed(work: Callable[[], Any], repeat: int) -> Turn:
    """Milliseconds that the device takes for `work`, and the host to ask for it."""

    def turn() -> Sample:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        work()  # while the device does this one, the host gets ahead
        begin.record()
        start = time.perf_counter()
        for _ in range(repeat):
            work()
        host = time.perf_counter() - start
        end.record()
        end.synchronize()
        return {"ms": begin.elapsed_time(end) / repeat, "host, µs": 1e6 * host / repeat}

    return turn


def moved(opt: Any, params: list[nn.Parameter]) -> Turn:
    """A step whose gradients lie elsewhere than those of the step before."""
    grads: list[list[Any]] = [[torch.randn_like(p) for p in params], [p.grad for p in params]]

    def turn() -> Sample:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        opt.step()
        for p, g in zip(params, grads[0], strict=True):
            p.grad = g
        grads.reverse()
        begin.record()
        opt.step()
        end.record()
        end.synchronize()
        return {"ms": begin.elapsed_time(end)}

    return turn


def copying(count: float) -> Callable[[], Any]:
    """A copy that moves as many bytes as `count` numbers of float32."""
    a, b = (torch.zeros(round(count / 2), device="cuda") for _ in range(2))
    return lambda: a.copy_(b)


def race(report: Report, of: ParameterSet, rounds: int) -> None:
    """All contestants on one set of parameters."""
    params = parameters(of)
    repeat = 50 if not of.large else 5
    opts = {name: make(params) for name, make in CONTESTANTS.items()}
    lamb = recipe("Lamb")
    assert lamb is not None
    opts["Treadle Lamb"] = lamb(params)
    turns = {name: timed(opt.step, repeat) for name, opt in opts.items()}
    for opt in opts.values():
        opt.step()
    moves = of.numbers * streams(opts["Treadle AdamW"])
    turns[COPY] = timed(copying(moves), repeat)
    turns["Treadle AdamW, gradients moved"] = moved(opts["Treadle AdamW"], params)
    samples = interleave(turns, rounds, warm_up=2)
    rows, middle = [], {}
    for name, measures in samples.items():
        middle[name] = report.add(name, f"{of.title}: step, ms", measures["ms"], digits=5)
        host = measures.get("host, µs")
        asked = report.add(name, f"{of.title}: host, µs", host) if host else None
        rate = NUMBER * moves / middle[name] / 1e6 if "Lamb" not in name else None
        cells = [figures(middle[name]), figures(asked) if asked else "-"]
        rows.append([name, *cells, figures(rate) if rate else "-"])
    report.show([f"{of.title} ({of.numbers / 1e6:.1f} M)", "ms", "host, µs", "GB/s"], rows)
    mine = middle["Treadle AdamW"]
    share = middle[COPY] / mine
    report.add("Treadle AdamW", f"{of.title}: share of a copy's bandwidth", [share])
    if of.large and share < SHARE:
        report.note(f"{of.title}: {share:.0%} of a copy's bandwidth; {SHARE:.0%} is the bar.")
    for other in ("torch fused", "torch capturable"):
        if mine > middle[other]:
            report.note(f"{of.title}: {mine / middle[other]:.2f} × the time of {other}.")


def options_given() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="turns of each contestant")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS_TIMED))
    parser.add_argument("--quick", action="store_true", help="a trial run: few rounds, no file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the JSON goes")
    options = parser.parse_args()
    options.rounds = 3 if options.quick else options.rounds
    return options


def main() -> None:
    """Check, measure, print, write."""
    options = options_given()
    if not torch.cuda.is_available():
        sys.exit("gpu_check.py needs a CUDA device, and torch finds none.")
    gpu = torch.cuda.get_device_name()
    report = Report(f"gpu-{slugged(gpu)}", options, gpu=gpu, cuda=torch.version.cuda)
    report.versions["treadle"] = versions("torch", "torchvision", "triton", "treadle")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TRITON_CACHE_DIR"] = scratch
        seconds = report.add("Treadle AdamW", "first step, nothing compiled, s", [first_step()])
        report.note(f"First step on {SETS['small'].title}: {seconds:.2f} s.")
        right = [
            check(report, make, name, dtype)
            for name, make in recipes().items()
            for dtype in DTYPES
            if name not in SIGNS or dtype.itemsize > 2
        ]
        report.note(f"{sum(right)} of {len(right)} recipes and dtypes agree with the reference.")
        for name in options.sets:
            race(report, SETS[name], options.rounds)
            torch.cuda.empty_cache()
    report.write()
    sys.exit(0 if all(right) else 1)


if __name__ == "__main__":
    main()
