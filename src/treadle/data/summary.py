"""Walk one sample and one batch through every stage, aloud."""

from __future__ import annotations

import os
from collections.abc import Sequence
from threading import Event
from typing import TYPE_CHECKING, Any

from treadle.data.collate import collate
from treadle.data.dataloaders import loader_types
from treadle.data.datasets import Dataset, Datasets
from treadle.data.describe import describe, name_of, shortened
from treadle.data.draws import Draws
from treadle.data.loaders import DataLoader
from treadle.data.making import Made, Task
from treadle.data.samples import through
from treadle.data.stages import Elements
from treadle.errors import UsageError, printable

if TYPE_CHECKING:
    from treadle.data.datablock import DataBlock

__all__ = ["print_summary", "print_walk"]


def print_summary(block: DataBlock, source: Any, bs: int) -> None:
    """Print each stage of `block` on `source` with what comes out of it."""
    getter = "" if block.get_items is None else f"{name_of(block.get_items)} of "
    named = printable(source) if isinstance(source, str | os.PathLike) else type(source).__name__
    print(f"Items: {getter}{named}")
    parts: Datasets = block.datasets(source)
    print(f"  {len(parts.train)} training items, {len(parts.valid)} validation items")
    # a seed of its own, so that looking draws nothing from torch's generator
    loader_type, _ = loader_types(parts.train.blocks)
    loader = loader_type(
        parts.train,
        min(bs, len(parts.train)),
        augment=True,
        item_tfms=block.item_tfms,
        batch_tfms=block.batch_tfms,
        num_workers=0,
        seed=0,
        device="cpu",
        cache=None,
    )
    print_walk(loader)


def print_walk(loader: DataLoader) -> None:
    """Print what the loader's next sample and next batch are after each stage, on the CPU.

    Raises `UsageError` where the loader's data set was not made by a `DataBlock`.
    """
    dataset = loader.dataset
    if not isinstance(dataset, Dataset):
        raise UsageError(
            "summary() walks the data of a DataBlock; this loader's data set is a "
            f"{type(dataset).__name__}."
        )
    _print_vocab(dataset)
    task = loader.next_task()
    _print_sample(loader, dataset, Task(task.epoch, task.indices[:1], task.addresses[:1]))
    _print_batch(loader, dataset, task)
    print(f"\nLoss: {dataset.loss_func or 'to be given as loss_func='}", end="")
    print(f"; the model gives {dataset.n_out} numbers" if dataset.n_out else "")


def _print_vocab(dataset: Dataset) -> None:
    inputs = [block for block in dataset.blocks[: dataset.n_inp] if block.vocab is not None]
    for block in (*inputs, *dataset.targets):
        if block.vocab is not None:
            alone = not inputs and len(dataset.targets) == 1
            named = "" if alone else f" ({type(block).__name__})"
            print(f"  vocab of {len(block.vocab)}{named}: {shortened(block.vocab)}")


def _print_sample(loader: DataLoader, dataset: Dataset, task: Task) -> None:
    index = int(task.indices[0])
    print(f"\nOne sample, {dataset.named(index)}")
    for place, block in enumerate(dataset.blocks):
        getter = f"{dataset.getter_name(place)} ({name_of(dataset.getters[place])})"
        print(f"  {getter}: {describe(dataset.value(index, place))}")
        print(f"  {type(block).__name__}: {describe(dataset.element(index, place))}")
    draws = _draws(loader, task)
    samples, draws = loader.maker.read(task, draws, Event())
    for stage in through(loader.maker.items, samples, draws):
        elements = [column[0] for column in samples.columns]
        _print_stage(stage.name, elements, samples.kinds, dataset)


def _print_batch(loader: DataLoader, dataset: Dataset, task: Task) -> None:
    print(f"\nOne batch of {len(task.indices)} samples")
    if type(loader) is not DataLoader:  # one that makes its batches in its own way
        batch = loader.one_batch()
        for place, element in enumerate(batch):
            print(f"  {'x' if place < loader.n_inp_of(batch) else 'y'}: {describe(element)}")
        return
    draws = _draws(loader, task)
    samples, draws = loader.maker.read(task, draws, Event())
    for _ in through(loader.maker.items, samples, draws):
        pass
    made = Made(
        *(samples.indices, collate(samples), samples.kinds, samples.n_inp, draws),
        left=loader.maker.stages,
    )
    _print_all("stacked", made.elements, dataset)
    for stage in loader.maker.steps(made):
        _print_stage(stage.name, made.elements, made.kinds, dataset)
    _print_all("to the model and the loss", made.elements, dataset)


def _draws(loader: DataLoader, task: Task) -> Draws | None:
    return Draws(loader.seed, task.epoch, task.addresses) if loader.augment else None


def _print_stage(
    name: str, elements: Sequence[Any], kinds: Sequence[str | None], dataset: Dataset
) -> None:
    """What a stage made of the elements that it may change: inputs, and what moves with them."""
    changed = [
        place for place, kind in enumerate(kinds) if place < dataset.n_inp or kind is not None
    ]
    if len(changed) == 1:
        print(f"  {name}: {describe(elements[changed[0]])}")
        return
    print(f"  {name}:")
    for place in changed:
        print(f"    {_title(dataset, place)}: {describe(elements[place])}")


def _print_all(title: str, elements: Elements, dataset: Dataset) -> None:
    print(f"  {title}:")
    for place, element in enumerate(elements):
        print(f"    {_title(dataset, place)}: {describe(element)}")


def _title(dataset: Dataset, place: int) -> str:
    """ "x" and "y", numbered where there are several."""
    name = dataset.getter_name(place).removeprefix("get_")
    return f"{name}, {type(dataset.blocks[place]).__name__}"
