"""fastai's side of the benchmarks. `peers.py` starts it with the interpreter that has fastai.

A line on stdin is a request, a line on stdout its answer, both JSON:
`{"prepare": WORKLOAD, "arguments": {...}}` makes a contestant and answers with its name;
`{"turn": NAME}` answers with what one turn of it measured. The versions are said first.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fastai.basics import DataLoaders, Learner, accuracy
from fastai.optimizer import Adam
from fastai.vision.all import (
    CategoryBlock,
    DataBlock,
    GrandparentSplitter,
    ImageBlock,
    Normalize,
    Resize,
    aug_transforms,
    imagenet_stats,
    parent_label,
)

import workloads
from common import Turn, versions


def step(parameter_set: str, **hypers: float) -> Turn:
    """fastai's Adam on one of the parameter sets."""
    opt = Adam(workloads.parameters(parameter_set), **hypers)
    return lambda: workloads.step_turn(opt)


def loop(kind: str, steps: int) -> Turn:
    """A training of the small net: by hand ("plain"), by `fit`, or by `fit_one_cycle`."""
    torch.set_num_threads(1)
    train, valid = workloads.batches(steps), workloads.batches(1)

    def turn() -> dict[str, float]:
        metrics = accuracy if kind == "one-cycle" else None
        dls = DataLoaders(train, valid, device=torch.device("cpu"))
        learn = Learner(dls, workloads.net(), F.cross_entropy, opt_func=Adam, metrics=metrics)
        learn.create_opt()
        work: dict[str, Callable[[], object]] = {
            "plain": lambda: workloads.plain_loop(learn.model, learn.opt, train, valid),
            "fit": lambda: learn.fit(1),
            "one-cycle": lambda: learn.fit_one_cycle(1, 1e-3),
        }
        with learn.no_bar(), learn.no_logging():
            return workloads.loop_turn(work[kind], steps)

    return turn


def loaders(files: list[str], warm_up: list[str], workers: int) -> Turn:
    """The loaders of `files`; those of `warm_up` are read through once at the start."""
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        splitter=GrandparentSplitter(valid_name="val"),
        get_y=parent_label,
        item_tfms=Resize(workloads.PRESIZE),
        batch_tfms=[
            *aug_transforms(min_scale=workloads.MIN_SCALE, size=workloads.SIZE),
            Normalize.from_stats(*imagenet_stats),
        ],
    )

    def make(names: list[str]) -> Any:
        paths = [Path(name) for name in names]
        return block.dataloaders(paths, bs=workloads.BATCH_SIZE, num_workers=workers)

    workloads.loader_turn(lambda: make(warm_up))
    return lambda: workloads.loader_turn(lambda: make(files))


WORKLOADS: dict[str, Callable[..., Turn]] = {"step": step, "loop": loop, "loaders": loaders}


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what fastai prints is no answer
    print(json.dumps(versions("torch", "torchvision", "fastai")), file=answers)
    turns: dict[str, Turn] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "prepare" in request:
            name = f"{request['prepare']} {len(turns)}"
            turns[name] = WORKLOADS[request["prepare"]](**request["arguments"])
            answer: dict[str, Any] = {"name": name}
        else:
            answer = turns[request["turn"]]()
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
