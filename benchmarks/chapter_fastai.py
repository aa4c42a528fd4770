"""fastai's side of chapter.py; `side.py` makes it where fastai is installed."""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastai.optimizer import (
    SGD,
    Adam,
    Optimizer,
    adam_step,
    average_grad,
    average_sqr_grad,
    momentum_step,
    rms_prop_step,
    sgd_step,
    step_stat,
    weight_decay,
)
from fastai.vision.all import (
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    DataLoaders,
    GrandparentSplitter,
    ImageBlock,
    Learner,
    Normalize,
    accuracy,
    aug_transforms,
    get_image_files,
    imagenet_stats,
    parent_label,
)

import chapter_work as work
from common import Turn

AVERAGES = [partial(average_grad, dampening=True), average_sqr_grad]
OPT_FUNCS = {
    "baseline Adam": Adam,
    "plain SGD": SGD,
    "SGD from one stepper": partial(Optimizer, cbs=[sgd_step]),
    "momentum": partial(Optimizer, cbs=[average_grad, momentum_step], mom=0.9),
    "RMSProp": partial(Optimizer, cbs=[average_sqr_grad, rms_prop_step], sqr_mom=0.99, eps=1e-7),
    "Adam from steppers": partial(
        Optimizer,
        cbs=[weight_decay, *AVERAGES, step_stat, adam_step],
        **{"mom": 0.9, "sqr_mom": 0.99, "eps": 1e-5, "wd": 0.01},
    ),
}


def loaders(folder: str) -> DataLoaders:
    """The loaders of the pictures that chapter.py has cut."""
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=get_image_files,
        splitter=GrandparentSplitter(valid_name="val"),
        get_y=parent_label,
        batch_tfms=[
            *aug_transforms(min_scale=work.MIN_SCALE, size=work.SIZE),
            Normalize.from_stats(*imagenet_stats),
        ],
    )
    return block.dataloaders(Path(folder), bs=work.BATCH_SIZE, num_workers=0, device="cpu")


def training(folder: str, row: str, seed: int, epochs: int) -> Turn:
    """One training; a turn gives what it came to."""
    torch.set_num_threads(work.THREADS)

    def turn() -> dict[str, Any]:
        random.seed(seed)
        np.random.seed(seed)
        dls = loaders(folder)
        dls.rng.seed(seed)  # the order of the training data
        model = work.net_of(seed)
        start = work.fingerprint(model)
        learn = Learner(
            dls, model, CrossEntropyLossFlat(), opt_func=OPT_FUNCS[row], metrics=accuracy
        )
        lr = work.ROWS[row]["lr"]
        began = time.perf_counter()
        with learn.no_bar(), learn.no_logging():
            if work.ROWS[row].get("fit") == "fit":
                learn.fit(epochs, lr)
            elif row == "plain SGD":
                learn.fit_one_cycle(epochs, lr, moms=(0, 0, 0))
            else:
                learn.fit_one_cycle(epochs, lr)
        names = ("train_loss", "valid_loss", "accuracy")
        return {
            "initial_weights": start,
            "total_seconds": time.perf_counter() - began,
            "losses": [float(loss) for loss in learn.recorder.losses],
            "epochs": [
                {"epoch": i, **dict(zip(names, map(float, row), strict=True))}
                for i, row in enumerate(learn.recorder.values)
            ],
        }

    return turn
