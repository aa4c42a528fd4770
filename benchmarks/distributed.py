"""Two processes on two cores: how much faster than one, and what Treadle adds to a bare loop.

Each of the processes holds all contestants, and they take turns: one process alone while the other
waits, both with nothing to share, and both with torch's DDP and FSDP, by a loop written by hand and
by Treadle. One thread each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from common import Report, Samples, Turn, arguments, interleave, paired_ratio, versions
from treadle.data import DataLoader, DataLoaders
from treadle.distributed import FSDP
from treadle.learner import Learner
from treadle.loop.parallel import Parallel
from treadle.optim import Adam
from treadle.world import World, world
from workloads import Batches

PROCESSES, LR = 2, 1e-4
MEASURE = "samples a second"

ALONE, ALONE_TREADLE = "one process, by hand", "one process, Treadle"
APART = "two processes, nothing shared"
DDP, DDP_TREADLE = "two, DDP by hand", "two, DDP, Treadle"
LOADER = "two, DDP, Treadle, its own loader"
SHARDED, SHARDED_TREADLE = "two, FSDP by hand", "two, FSDP, Treadle"

BESIDE = {
    ALONE_TREADLE: ALONE,
    DDP_TREADLE: DDP,
    LOADER: DDP,
    SHARDED_TREADLE: SHARDED,
}
"""Of each training with Treadle, the loop by hand that does the same."""

FASTER, ADDED = "x one process", "% added to the loop by hand"
BARS = {FASTER: 1.8, ADDED: 3.0}
"""At least, and at most; for `DDP_TREADLE` with the large net."""


@dataclass(frozen=True)
class Work:
    """A net, its batches, and how many steps a turn takes."""

    net: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch_size: int
    steps: int


def conv_net() -> nn.Module:
    """Five convolutions for pictures of 32 x 32: 0.3 million weights, much to compute."""
    widths = [3, 32, 64, 64, 128, 128]
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        layers += [nn.Conv2d(n_in, n_out, 3, stride=2 if i in (1, 3) else 1, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def small_net() -> nn.Module:
    """Three layers, 0.1 million weights."""
    return nn.Sequential(
        nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


WORK = {
    "conv net": Work(conv_net, (3, 32, 32), 256, 8),
    "small net": Work(small_net, (256,), 512, 400),
}


def batches(work: Work, rank: int) -> Batches:
    """What process `rank` has of each batch of a turn: samples and classes."""
    generator = torch.Generator().manual_seed(rank)
    n = work.steps * work.batch_size
    x = torch.randn(n, *work.shape, generator=generator)
    y = torch.randint(10, (n,), generator=generator)
    return list(zip(x.split(work.batch_size), y.split(work.batch_size), strict=True))


def whole_batches(work: Work) -> Batches:
    """What all processes have of each: Treadle deals it out, first things first."""
    both = zip(*(batches(work, rank) for rank in range(PROCESSES)), strict=True)
    return [(torch.cat([x for x, _ in pair]), torch.cat([y for _, y in pair])) for pair in both]


def made(work: Work) -> nn.Module:
    """The net of `work`, the same weights each time."""
    torch.manual_seed(0)
    return work.net()


# The contestants. Their nets and optimizers stay from turn to turn.


def by_hand(model: Any, train: Batches) -> Callable[[], object]:
    """A loop as one would write it; the losses are kept."""
    opt = torch.optim.AdamW(
        model.parameters(), LR, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.0, fused=True
    )
    losses: list[Tensor] = []

    def fit() -> None:
        losses.clear()
        model.train()
        for x, y in train:
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            losses.append(loss.detach())

    return fit


def treadle(model: nn.Module, train: Any, parallel: Parallel | None) -> Callable[[], object]:
    """A learner with recorder, progress and the rest of what is on by default."""
    adam = partial(Adam, mom=0.9, sqr_mom=0.99, eps=1e-5, wd=0.0)
    dls = DataLoaders(train, device="cpu")
    if type(parallel) is Parallel:
        dls.train.world = World()
    learn = Learner(dls, model, F.cross_entropy, adam, lr=LR, parallel=parallel)

    def fit() -> None:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            learn.fit(1)

    return fit


def by_hand_sharded(work: Work, train: Batches) -> Callable[[], object]:
    """The loop with `fully_shard`: as Treadle does it, a net as small as these as one piece."""
    mesh = init_device_mesh("cpu", (PROCESSES,))
    return by_hand(fully_shard(made(work), mesh=mesh, reshard_after_forward=True), train)


def own_loader(work: Work) -> DataLoader:
    """Treadle's loader over the single samples."""
    x, y = (torch.cat(parts) for parts in zip(*whole_batches(work), strict=True))
    total = PROCESSES * work.batch_size
    return DataLoader(TensorDataset(x, y), global_bs=total, num_workers=0, device="cpu", seed=0)


def turns(work: Work) -> dict[str, Turn]:
    """The turns of this process, in step with those of the other."""
    here, mine, whole = world(), batches(work, world().rank), whole_batches(work)
    first = {name: made(work) for name in (ALONE, ALONE_TREADLE, APART, DDP_TREADLE, LOADER)}
    ddp = DistributedDataParallel(made(work), gradient_as_bucket_view=True)
    fits = {
        ALONE: by_hand(first[ALONE], mine),
        ALONE_TREADLE: treadle(first[ALONE_TREADLE], mine, Parallel()),
        APART: by_hand(first[APART], mine),
        DDP: by_hand(ddp, mine),
        DDP_TREADLE: treadle(first[DDP_TREADLE], whole, None),
        LOADER: treadle(first[LOADER], own_loader(work), None),
        SHARDED: by_hand_sharded(work, mine),
        SHARDED_TREADLE: treadle(made(work), whole, FSDP()),
    }
    return {
        name: timed(fit, here, work, 1 if name in (ALONE, ALONE_TREADLE) else here.size)
        for name, fit in fits.items()
    }


def timed(fit: Callable[[], object], here: World, work: Work, size: int) -> Turn:
    """A turn of `fit` in the first `size` processes. It takes as long as the slowest."""

    def turn() -> dict[str, float]:
        here.barrier()
        start = time.perf_counter()
        if here.rank < size:
            fit()
        took = torch.tensor(time.perf_counter() - start if here.rank < size else 0.0)
        dist.all_reduce(took, dist.ReduceOp.MAX)
        return {MEASURE: work.batch_size * work.steps * size / float(took)}

    return turn


def worker(name: str, rounds: int, quick: bool) -> Samples:
    """What torch's launcher runs in each process."""
    torch.set_num_threads(1)
    world()
    work = WORK[name]
    if quick:
        work = Work(work.net, work.shape, work.batch_size, work.steps // 4)
    return interleave(turns(work), rounds)


def measured(name: str, rounds: int, quick: bool) -> Samples:
    """All turns of one net, in processes of their own."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=PROCESSES,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="benchmark",
        max_restarts=0,
    )
    found: Mapping[int, Samples] = elastic_launch(config, worker)(name, rounds, quick)
    return found[0]


def rows(report: Report, net: str, samples: Samples) -> list[list[str]]:
    """Each contestant beside one process alone, and beside the loop by hand that does the same."""
    speeds = {name: taken[MEASURE] for name, taken in samples.items()}
    lines = []
    for name, speed in speeds.items():
        title = f"{net}: {name}"
        middle = report.add(title, MEASURE, speed, digits=1)
        numbers = report.results[title][MEASURE]
        times = paired_ratio(speed, speeds[ALONE_TREADLE if "Treadle" in name else ALONE])
        numbers[FASTER] = round(times, 3)
        line = [name, f"{middle:,.0f}", f"{times:.2f}", ""]
        if name in BESIDE:
            added = 100 * (paired_ratio(speeds[BESIDE[name]], speed) - 1)
            numbers[ADDED] = round(added, 2)
            line[3] = f"{added:+.1f}"
        lines.append(line)
    return lines


def bars(report: Report, net: str) -> list[list[str]]:
    """What was reached beside what must be."""
    reached = report.results[f"{net}: {DDP_TREADLE}"][MEASURE]
    met = {FASTER: reached[FASTER] >= BARS[FASTER], ADDED: reached[ADDED] < BARS[ADDED]}
    return [
        [f"{DDP_TREADLE}: {name}", f"{bar:g}", f"{reached[name]:.2f}", "yes" if met[name] else "no"]
        for name, bar in BARS.items()
    ]


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("--nets", nargs="+", choices=WORK, default=list(WORK))
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 9)
    os.environ["OMP_NUM_THREADS"] = "1"
    settings = {name: f"{w.steps} steps of {w.batch_size}" for name, w in WORK.items()}
    report = Report("distributed", options, processes=PROCESSES, threads=1, nets=settings)
    report.versions["treadle"] = versions("torch", "treadle")
    header = ["training", MEASURE, FASTER, ADDED]
    for net in options.nets:
        samples = measured(net, options.rounds, options.quick)
        header[0] = net
        report.show(header, rows(report, net, samples))
    if "conv net" in options.nets:
        report.show(["must be", "bar", "reached", "met"], bars(report, "conv net"))
    report.write()


if __name__ == "__main__":
    main()
