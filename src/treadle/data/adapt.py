"""Data that others have made, as they are: their data sets, their loaders, any batches.

What a training loop needs of a loader is little: batches `(*inputs, *targets)` of tensors on the
device, their number, and that the next epoch can be had. `adapt` gives that to

- data sets of PyTorch and of Hugging Face that have a length: Treadle's `DataLoader` reads them;
- data sets that are streams of samples, loaders of PyTorch, and other iterables of batches or
  functions that make one: `Batches` hands on what they give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset

from treadle.data.batches import (
    Batches,
    Stream,
    as_tensors,
    described,
    has_distributed_sampler,
)
from treadle.data.columns import Columns, hugging_face, hugging_face_columns, hugging_face_dataset
from treadle.data.datasets import Dataset
from treadle.data.loaders import DataLoader
from treadle.errors import UsageError
from treadle.losses import CrossEntropyLossFlat
from treadle.world import world

__all__ = ["Rows", "adapt", "as_dataset", "is_dataset", "own_options"]

Names = str | Sequence[str] | None
"""Which columns of dicts to take: one, several, or whichever have a usual name."""


def adapt(
    source: Any,
    bs: int = 64,
    *,
    train: bool = False,
    inputs: Names = None,
    targets: Names = None,
    n_iter: int | None = None,
    device: torch.device | str | None = None,
    sharded: bool | None = None,
    **options: Any,
) -> Any:
    """A loader for what `source` holds. `DataLoaders(...)` does this with all that it is given.

    - Loaders of Treadle come back as they are, and so do, in one process, lists of batches that are
      tuples of tensors.
    - Of a data set with a length, `DataLoader` makes batches of `bs` samples; with `train` they
      are shuffled, and the last is left out if it is smaller. `options` are those of `DataLoader`.
    - Anything else that gives batches, or as an `IterableDataset` samples, becomes `Batches`:
      a loader, an iterable, an iterator, or a function without arguments that returns one.

    `inputs` and `targets` name the columns where samples or batches are dicts; without them the
    usual names are looked for ("image", "label", ...). `n_iter` says how many batches an epoch has
    where the source cannot tell. `device` is where batches go: None means `default_device()`.

    Of several processes (see `treadle.world`) each has its part of every batch, whoever makes it.
    `sharded` says that a source of batches, or a stream of samples, gives each process its own
    already; None means if it is a loader of torch with a `DistributedSampler`.

    Raises `UsageError` for what gives no batches.

    >>> def batches():
    ...     for _ in range(3):
    ...         yield {"image": np.zeros((2, 8)), "label": np.array([0, 1])}
    >>> loader = adapt(batches, n_iter=3, device="cpu")
    >>> [(x.dtype, y.tolist()) for x, y in loader][0], len(loader)
    ((torch.float32, [0, 1]), 3)
    """
    columns = Columns.of(inputs, targets)
    alone = world().size == 1
    if isinstance(source, DataLoader | Batches) or (alone and _is_ready(source)):
        return source
    if is_dataset(source):
        if sharded:
            raise UsageError(
                f"sharded=True is for batches and streams; of {described(source)} every process is "
                "to have the whole, and each reads its part."
            )
        dataset = as_dataset(source, inputs, targets)
        options = {"shuffle": train, "drop_last": train, **own_options(source), **options}
        return DataLoader(dataset, bs, device=device, **options)
    if options:
        raise UsageError(
            f"{', '.join(f'{name}=' for name in sorted(options))} would act on the samples of a "
            f"data set; {described(source)} gives its own batches."
        )
    if hugging_face(source) == "IterableDataset":
        columns = hugging_face_columns(source, columns)
    if isinstance(source, IterableDataset) or hugging_face(source) == "IterableDataset":
        source = Stream(source, bs if sharded else bs * world().size, columns)
        columns = Columns.of(None, None)
    elif not _gives_batches(source):
        raise _no_batches(source)
    own = has_distributed_sampler(source) if sharded is None else sharded
    return Batches(source, columns, n_iter, device, own)


def is_dataset(source: Any) -> bool:
    """Whether `source` is a data set with a length, rather than an iterable of batches."""
    if isinstance(source, type) or not hasattr(source, "__getitem__"):
        return False
    if isinstance(source, Dataset) or hugging_face(source) == "Dataset":
        return True
    if isinstance(source, TorchDataset):
        return not isinstance(source, IterableDataset)
    return hasattr(source, "__len__") and not hasattr(source, "__iter__")


def as_dataset(source: Any, inputs: Names = None, targets: Names = None) -> Any:
    """A data set with a length, so that `DataLoader` can read it.

    One of Hugging Face becomes a `Dataset`, with blocks by the types of its columns. Of others the
    samples become tuples (`Rows`); a `Dataset` of Treadle's stays.
    """
    columns = Columns.of(inputs, targets)
    if isinstance(source, Dataset):
        return source
    if not hasattr(source, "__len__"):
        raise UsageError(
            f"{described(source)} is a data set without a length; expected one with __len__ and "
            "__getitem__, or an IterableDataset."
        )
    if hugging_face(source) == "Dataset" and source.format["type"] != "custom":
        return hugging_face_dataset(source, columns)
    return Rows(source, columns)


def own_options(source: Any) -> dict[str, Any]:
    """What a `DataLoader` of this data set does unless it is told otherwise."""
    # rows hold images, not files: there is nothing to keep, and asking reads all of them
    return {} if hugging_face(source) is None else {"cache": None}


class Rows:
    """A data set whose samples may be tuples, dicts or single values, as one of tuples.

    All else is the data set's own; where it has `classes` and `targets`, as those of torchvision
    have, the classes are the `vocab`.
    """

    def __init__(self, source: Any, columns: Columns) -> None:
        self.source, self.columns = source, columns

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(as_tensors(part) for part in self.columns.parts(self.source[index]))

    @property
    def n_inp(self) -> int | None:
        """How many elements of a sample are inputs, where that is known."""
        return self.columns.n_inp or getattr(self.source, "n_inp", None)

    @property
    def vocab(self) -> list[Any] | None:
        """The classes, or None."""
        known = getattr(self.source, "vocab", None)
        if known is None and hasattr(self.source, "targets"):
            known = getattr(self.source, "classes", None)
        return None if known is None else list(known)

    @property
    def n_out(self) -> int | None:
        """How many numbers a model gives for the target, where that is known."""
        known: int | None = getattr(self.source, "n_out", None)
        return known or (None if self.vocab is None else len(self.vocab))

    @property
    def loss_func(self) -> Callable[..., Any] | None:
        """The data set's own, or that of classes where there are some, or None."""
        own: Callable[..., Any] | None = getattr(self.source, "loss_func", None)
        return own or (None if self.vocab is None else CrossEntropyLossFlat())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)


def _is_ready(source: Any) -> bool:
    """Whether `source` is a list of batches that a loop can have as they are."""
    if not isinstance(source, list | tuple):
        return False
    first = source[0] if len(source) else ()
    parts = first if isinstance(first, list | tuple) else (first,)
    return not any(isinstance(part, np.ndarray | np.generic) for part in parts) and not isinstance(
        first, Mapping
    )


def _gives_batches(source: Any) -> bool:
    if isinstance(source, type | str | bytes | Mapping | torch.Tensor | np.ndarray | Image.Image):
        return False
    return isinstance(source, Iterable) or callable(source)


def _no_batches(source: Any) -> UsageError:
    if isinstance(source, type):
        mend = f"Make one: {source.__name__}(...)."
    elif isinstance(source, torch.Tensor | np.ndarray):
        mend = "Give TensorDataset(x, y) of torch.utils.data, and bs=."
    elif isinstance(source, Mapping):
        parts = ", ".join(f"d[{key!r}]" for key in list(source)[:2])
        mend = f"Give its parts, training first: DataLoaders({parts})."
    else:
        mend = "Files become batches through a DataBlock."
    return UsageError(
        f"{described(source)} gives no batches; expected a data set, a loader, an iterable of "
        f"batches or a function that returns one. {mend}"
    )
