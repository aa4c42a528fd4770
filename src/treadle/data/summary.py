"""Walk one item and one batch through every stage, aloud."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from treadle.data.datasets import Dataset
from treadle.data.describe import describe, name_of
from treadle.data.draws import Draws
from treadle.data.loaders import DataLoader

if TYPE_CHECKING:
    from treadle.data.datablock import DataBlock

__all__ = ["print_summary"]


def print_summary(block: DataBlock, source: Any, bs: int) -> None:
    """Print each stage of `block` on `source` with what comes out of it."""
    getter = "source" if block.get_items is None else name_of(block.get_items)
    print(f"Items: {getter} of {source}")
    datasets = block.datasets(source)
    train, valid = datasets.train, datasets.valid
    print(f"  {len(train)} training items, {len(valid)} validation items")
    if datasets.vocab is not None:
        print(f"  vocab of {len(datasets.vocab)}: {_shortened(datasets.vocab)}")

    # a seed of its own, so that looking draws nothing from torch's generator
    loader = DataLoader(
        train,
        min(bs, len(train)),
        augment=True,
        item_tfms=block.item_tfms,
        batch_tfms=block.batch_tfms,
        num_workers=0,
        seed=0,
        device="cpu",
    )
    print(f"\nOne sample, {train.items[0]}")
    for place in range(len(train.blocks)):
        _print_element(loader, train, place)
    print(f"\nOne batch of {loader.bs} samples, before batch transforms")
    batch, draws = loader.raw_batch()
    for element in batch:
        print(f"  {describe(element)}")
    print("\nBatch transforms of the inputs")
    for x in batch[: train.n_inp]:
        for stage in loader.batch_stages:
            x = loader.batch_stage(stage, x, draws)
            print(f"  {stage.name}: {describe(x)}")


def _print_element(loader: DataLoader, train: Dataset, place: int) -> None:
    value = train.value(0, place)
    print(f"  {train.getter_name(place)} ({name_of(train.getters[place])}): {describe(value)}")
    block = train.blocks[place]
    try:
        value = block.encode(value)
    except Exception as error:
        error.add_note(f"In {type(block).__name__}, for the training item 0: {train.items[0]}")
        raise
    print(f"  {type(block).__name__}: {describe(value)}")
    if place < train.n_inp:
        draws = Draws(loader.seed, 0, np.array([0]))
        for stage in loader.item_stages:
            value = loader.item_stage(stage, value, 0, draws)
            print(f"  {stage.name}: {describe(value)}")


def _shortened(vocab: list[Any], most: int = 10) -> str:
    shown = ", ".join(map(str, vocab[:most]))
    return shown if len(vocab) <= most else f"{shown}, ... {vocab[-1]}"
