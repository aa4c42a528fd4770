"""fastai's contestants of loop.py and data.py; `side.py` makes them where fastai is installed."""

from __future__ import annotations

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
from common import Turn

Training = Callable[[Learner, workloads.Batches, workloads.Batches], object]


def _turns(steps: int, training: Training, metrics: Any = None) -> Turn:
    torch.set_num_threads(1)
    train, valid = workloads.batches(steps), workloads.batches(1)

    def turn() -> dict[str, float]:
        dls = DataLoaders(train, valid, device=torch.device("cpu"))
        learn = Learner(dls, workloads.net(), F.cross_entropy, opt_func=Adam, metrics=metrics)
        learn.create_opt()
        with learn.no_bar(), learn.no_logging():
            return workloads.loop_turn(lambda: training(learn, train, valid), steps)

    return turn


def by_hand(steps: int) -> Turn:
    """The plain loop with fastai's Adam."""
    return _turns(
        steps,
        lambda learn, train, valid: workloads.plain_loop(learn.model, learn.opt, train, valid),
    )


def fit(steps: int) -> Turn:
    """`fit` as it is, which records the losses."""
    return _turns(steps, lambda learn, *_: learn.fit(1))


def fit_one_cycle(steps: int) -> Turn:
    """`fit_one_cycle` with accuracy."""
    return _turns(steps, lambda learn, *_: learn.fit_one_cycle(1, workloads.LR), accuracy)


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
