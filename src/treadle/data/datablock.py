"""DataBlock: the plan by which a source becomes loaders."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import torch

from treadle.data.blocks import Block, CategoryBlock, ImageBlock
from treadle.data.dataloaders import DataLoaders, loader_types
from treadle.data.datasets import Dataset, Datasets
from treadle.data.describe import shortened
from treadle.data.order import Order
from treadle.data.pipeline import Transforms, listed
from treadle.data.splitters import RandomSplitter, Splitter
from treadle.data.summary import print_summary
from treadle.data.table import as_items
from treadle.errors import DataError, UsageError
from treadle.registry import register
from treadle.world import main_speaks, world

__all__ = ["DataBlock"]

Getter = Callable[[Any], Any]


class DataBlock:
    """How a source becomes items, parts, samples and batches. Nothing is read before it is asked.

    - `blocks`: what the elements of a sample are, inputs first; blocks or their classes, or one.
    - `get_items`: source -> items; None takes the source itself as the list of items. Items may be
      a pandas data frame or a `Table`: its rows then, which getters read by `row["label"]`,
      `row.label` or `ColReader`.
    - `splitter`: items -> (training indices, validation indices); None is `RandomSplitter()`.
    - `get_x`, `get_y`: item -> what the input and the target block encode; a list of functions
      where there are several. Without `get_x` it is the item itself.
    - `item_tfms`: transforms of one image each, run by the workers; `batch_tfms`: transforms of
      batches of float images, run on the device. Plain functions of one argument count as well.
      Targets that are masks, points or boxes go where the image goes.
    - `n_inp`: how many blocks are inputs; None means all but the last.

    The names and their meanings are fastai's.

    >>> import numpy as np
    >>> from treadle.data import IndexSplitter
    >>> items = [(np.full((8, 8), index, np.uint8), "ab"[index % 2]) for index in range(10)]
    >>> plan = DataBlock(
    ...     blocks=(ImageBlock("L"), CategoryBlock),
    ...     get_x=lambda item: item[0],
    ...     get_y=lambda item: item[1],
    ...     splitter=IndexSplitter([8, 9]),
    ... )
    >>> dls = plan.dataloaders(items, bs=4, device="cpu")
    >>> dls.vocab, [tuple(element.shape) for element in dls.one_batch()]
    (['a', 'b'], [(4, 1, 8, 8), (4,)])
    """

    def __init__(
        self,
        blocks: Block | type[Block] | Sequence[Block | type[Block]] = (ImageBlock, CategoryBlock),
        *,
        get_items: Callable[[Any], Sequence[Any]] | None = None,
        splitter: Splitter | None = None,
        get_y: Getter | Sequence[Getter] | None = None,
        get_x: Getter | Sequence[Getter] | None = None,
        item_tfms: Transforms = None,
        batch_tfms: Transforms = None,
        n_inp: int | None = None,
    ) -> None:
        several = (blocks,) if isinstance(blocks, Block | type) else blocks
        self.blocks = tuple(b() if isinstance(b, type) else b for b in several)
        self.n_inp = max(len(self.blocks) - 1, 1) if n_inp is None else n_inp
        if not 1 <= self.n_inp <= len(self.blocks):
            raise UsageError(
                f"DataBlock(n_inp={n_inp!r}) with {len(self.blocks)} blocks: expected 1 to "
                f"{len(self.blocks)} of them to be inputs."
            )
        n_targets = len(self.blocks) - self.n_inp
        self.getters = (
            *_getters("get_x", get_x or [itself] * self.n_inp, self.n_inp),
            *_getters("get_y", get_y or [], n_targets),
        )
        self.get_items = get_items
        self.splitter = splitter or RandomSplitter()
        self.item_tfms, self.batch_tfms = listed(item_tfms), listed(batch_tfms)

    def datasets(self, source: Any) -> Datasets:
        """The training and validation samples of `source`.

        Raises `DataError` where there are no items, where nothing is left to train on, and where
        the labels do not make a classification problem.
        """
        world()  # so that all processes split alike
        given = source if self.get_items is None else self.get_items(source)
        items = as_items(given)
        if len(items) == 0:
            raise DataError(f"There are no items in {source}; expected at least one to train on.")
        # a splitter that is written for a data frame gets it
        parts = self._split(items, given if isinstance(given, Sized) else items)
        raw = [
            Dataset(part, self.getters, self.blocks, self.n_inp, name)
            for part, name in zip(parts, ("training", "validation"), strict=True)
        ]
        blocks = tuple(
            block.setup(*(_labelled(dataset, place) for dataset in raw))
            for place, block in enumerate(self.blocks)
        )
        train, valid = (
            Dataset(part.items, self.getters, blocks, self.n_inp, part.part) for part in raw
        )
        return Datasets(train, valid)

    def dataloaders(
        self,
        source: Any,
        bs: int = 64,
        *,
        global_bs: int | None = None,
        val_bs: int | None = None,
        path: str | os.PathLike[str] | None = None,
        num_workers: int | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
        shuffle_train: bool = True,
        sampler: Order | None = None,
        drop_last: bool = True,
        cache: str | None = "auto",
        on_error: str = "raise",
    ) -> DataLoaders:
        """The loaders of `source`: training augmented, shuffled and without a last smaller batch.

        `path` is where a learner saves (None: the working folder). `val_bs` is the batch size of
        validation, None means `bs`. The other arguments are those of `DataLoader`; `shuffle_train`,
        `sampler` and `drop_last` are for the training loader. Both loaders have the same seed.
        """
        parts = self.datasets(source)
        loader_type, loaders_type = loader_types(parts.train.blocks)
        train = loader_type(
            parts.train,
            bs,
            global_bs=global_bs,
            shuffle=shuffle_train,
            drop_last=drop_last,
            sampler=sampler,
            augment=True,
            item_tfms=self.item_tfms,
            batch_tfms=self.batch_tfms,
            num_workers=num_workers,
            seed=seed,
            device=device,
            cache=cache,
            on_error=on_error,
        )
        return loaders_type(
            train, train.over(parts.valid, val_bs), path="." if path is None else path
        )

    @main_speaks()
    def summary(self, source: Any, bs: int = 4) -> None:
        """Print what every stage makes of one item and one batch of `source`, on the CPU.

        An exception in a stage passes through after the lines of the stages before it; its notes
        name the stage, the item and the index.
        """
        print_summary(self, source, bs)

    def _split(self, items: Any, given: Any) -> tuple[list[Any], list[Any]]:
        train, valid = self.splitter(given)
        for index in (*train, *valid):
            if not 0 <= index < len(items):
                raise DataError(
                    f"The splitter returned the index {index}; there are {len(items)} items, "
                    f"expected 0 to {len(items) - 1}."
                )
        if len(train) == 0:
            raise DataError(f"The splitter left none of {len(items)} items to train on.")
        parts = [items[i] for i in train], [items[i] for i in valid]
        shared = {*train} & {*valid} or _files(parts[0]) & _files(parts[1])
        if shared:
            first = min(shared)
            example = shortened(items[first] if isinstance(first, int) else first)
            warnings.warn(
                f"{len(shared)} of {len(items)} items are in both parts, for example {example}: "
                "validation will look better than it is.",
                stacklevel=4,
            )
        return parts


def _files(items: Sequence[Any]) -> set[Any]:
    """Those of `items` that are paths, as text: of others it is not cheap to know."""
    return {os.fspath(item) for item in items if isinstance(item, str | os.PathLike)}


@register
def itself(item: Any) -> Any:
    return item


def _getters(name: str, given: Getter | Sequence[Getter], count: int) -> tuple[Getter, ...]:
    getters = (given,) if callable(given) else tuple(given)
    if len(getters) != count:
        raise UsageError(
            f"DataBlock got {len(getters)} functions in {name} for {count} "
            f"{'input' if name == 'get_x' else 'target'} blocks; expected one for each."
        )
    return getters


def _labelled(dataset: Dataset, place: int) -> Iterator[tuple[Any, Any]]:
    """Pairs (value, item), made only as far as a block asks for them."""
    for index, item in enumerate(dataset.items):
        yield dataset.value(index, place), item
