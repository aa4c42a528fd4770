"""The loaders of a training run, held together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from treadle.data.datasets import Dataset
from treadle.data.loaders import DataLoader, default_device
from treadle.data.show import show_batch, show_results
from treadle.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DataLoaders"]


class DataLoaders:
    """The training loader, the validation loader, and what is known of their data.

    The loaders may be any iterables of batches, those of `torch.utils.data` included; what only
    Treadle's know (`vocab`, `c`, `test_dl`, `show_batch`) is then missing. `path` is where a
    learner puts what it saves. `device` is where batches go: None means the first loader's own, or
    `default_device()`. It is set on the loaders of Treadle; others keep handing out what they do.
    """

    def __init__(
        self,
        *loaders: Iterable[Any],
        path: str | os.PathLike[str] = ".",
        device: torch.device | str | None = None,
    ) -> None:
        if not loaders:
            raise UsageError("DataLoaders() got no loader; expected a training loader at least.")
        self.loaders: list[Any] = list(loaders)
        self.path = Path(path)
        own = getattr(loaders[0], "device", None)
        self.device = own if isinstance(own, torch.device) else default_device()
        if device is not None:
            self.to(device)

    @property
    def train(self) -> Any:
        """The training loader."""
        return self.loaders[0]

    @property
    def valid(self) -> Any:
        """The validation loader."""
        return self[1]

    def __getitem__(self, index: int) -> Any:
        try:
            return self.loaders[index]
        except IndexError:
            raise UsageError(
                f"There is no loader {index}: these DataLoaders hold {len(self)} (0 trains, 1 "
                "validates)."
            ) from None

    def __len__(self) -> int:
        return len(self.loaders)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loaders)

    @property
    def train_ds(self) -> Any:
        """The training loader's data set."""
        return self.train.dataset

    @property
    def valid_ds(self) -> Any:
        """The validation loader's data set."""
        return self.valid.dataset

    @property
    def vocab(self) -> list[Any]:
        """The classes, in the order of their indices. AttributeError where there are none."""
        vocab: list[Any] | None = getattr(self._dataset, "vocab", None)
        if vocab is None:
            raise AttributeError(
                "These DataLoaders have no vocab: their targets are no categories."
            )
        return vocab

    @property
    def c(self) -> int:
        """How many classes there are. AttributeError where there are none."""
        return len(self.vocab)

    @property
    def n_inp(self) -> int:
        """How many elements of a batch are inputs; the others are targets."""
        return getattr(self._dataset, "n_inp", 1)

    @property
    def loss_func(self) -> Callable[..., Any] | None:
        """The loss that suits the targets, or None where that is not known."""
        return getattr(self._dataset, "loss_func", None)

    def to(self, device: torch.device | str) -> DataLoaders:
        """Put the following batches on `device`; returns the loaders."""
        self.device = torch.device(device)
        for loader in self.loaders:
            if hasattr(loader, "to"):
                loader.to(self.device)
        return self

    def one_batch(self) -> Any:
        """A batch of the training loader; Treadle's loaders are not advanced by it."""
        if isinstance(self.train, DataLoader):
            return self.train.one_batch()
        return next(iter(self.train))

    def test_dl(self, items: Sequence[Any], with_labels: bool = False, bs: int = 0) -> DataLoader:
        """A loader of other items, treated as validation items are, in their order.

        Without labels its batches are `(x,)`. `bs` is that of the validation loader unless given.
        """
        like = self._ours("test_dl", self.loaders[-1])
        dataset = self._dataset
        if not isinstance(dataset, Dataset):
            raise UsageError("test_dl needs loaders made by DataBlock.dataloaders().")
        return like.over(dataset.of(items, with_labels), bs or None)

    def show_batch(self, max_n: int = 9) -> Figure:
        """A figure of up to `max_n` training images with their labels, as the model gets them."""
        loader = self._ours("show_batch", self.train)
        return show_batch(loader, loader.one_batch(), max_n)

    def show_results(
        self, loader: Any, batch: Any, answers: torch.Tensor, max_n: int = 9
    ) -> Figure:
        """A figure of images of a batch, with their labels and what a model answered."""
        return show_results(self._ours("show_results", loader), batch, answers, max_n)

    @property
    def _dataset(self) -> Any:
        return getattr(self.train, "dataset", None)

    def _ours(self, verb: str, loader: Any) -> DataLoader:
        if not isinstance(loader, DataLoader):
            raise UsageError(
                f"{verb} works with Treadle's own DataLoader; these loaders hold "
                f"{type(loader).__name__}."
            )
        return loader
