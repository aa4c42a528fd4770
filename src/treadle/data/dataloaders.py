"""The loaders of a training run, held together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from treadle.data.adapt import Names, adapt, as_dataset, own_options
from treadle.data.batches import Batches
from treadle.data.blocks import Block
from treadle.data.datasets import Dataset
from treadle.data.loaders import DataLoader, default_device
from treadle.data.show import show_batch, show_results
from treadle.data.together import check_alike
from treadle.errors import UsageError
from treadle.world import world

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DataLoaders", "loader_types"]


class DataLoaders:
    """The training loader, the validation loader, and what is known of their data.

    Each of `loaders`, the training loader first, may be a loader or a list of batches, a data set
    (of PyTorch, Hugging Face or Treadle: `bs` samples make a batch, those of the first are
    shuffled), or anything else that `adapt` takes. What only Treadle's loaders know (`vocab`, `c`,
    `test_dl`, `show_batch`) is missing where they are none. Where samples or batches are dicts,
    `inputs` and `targets` name the columns. `path` is where a learner puts what it saves. `device`
    is where batches go: None means the first loader's own, or `default_device()`.
    """

    def __init__(
        self,
        *loaders: Any,
        bs: int = 64,
        inputs: Names = None,
        targets: Names = None,
        path: str | os.PathLike[str] = ".",
        device: torch.device | str | None = None,
    ) -> None:
        if not loaders:
            raise UsageError("DataLoaders() got no loader; expected a training loader at least.")
        own = getattr(loaders[0], "device", None)
        self.device = own if isinstance(own, torch.device) else default_device()
        self.loaders: list[Any] = [
            adapt(loader, bs, train=place == 0, inputs=inputs, targets=targets, device=self.device)
            for place, loader in enumerate(loaders)
        ]
        self.path = Path(path)
        if device is not None:
            self.to(device)

    @classmethod
    def from_dsets(
        cls,
        *datasets: Any,
        bs: int = 64,
        inputs: Names = None,
        targets: Names = None,
        path: str | os.PathLike[str] = ".",
        device: torch.device | str | None = None,
        shuffle: bool = True,
        drop_last: bool = True,
        **options: Any,
    ) -> DataLoaders:
        """Loaders of data sets that have a length, training first.

        `shuffle`, `drop_last` and those of `options` that are about order and augmentation
        (`sampler`, `augment`) are for the training loader; the others, those of `DataLoader`, hold
        for all.

        >>> x = torch.arange(6.0)[:, None]
        >>> data = torch.utils.data.TensorDataset(x, 2 * x)
        >>> dls = DataLoaders.from_dsets(data, data, bs=4, device="cpu")
        >>> len(dls.train), len(dls.valid), dls.valid.one_batch()[1].flatten().tolist()
        (1, 2, [0.0, 2.0, 4.0, 6.0])
        """
        if not datasets:
            raise UsageError("from_dsets() got no data set; expected one to train on at least.")
        options = own_options(datasets[0]) | options
        first, *others = (as_dataset(dataset, inputs, targets) for dataset in datasets)
        train = DataLoader(first, bs, shuffle, drop_last, device=device, **options)
        return cls(train, *(train.over(other) for other in others), path=path, device=device)

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
        """The classes, in the order of their indices; a list of such lists where several targets
        have classes. AttributeError where there are none."""
        vocab: list[Any] | None = getattr(self._dataset, "vocab", None)
        if vocab is None:
            raise AttributeError(
                "These DataLoaders have no vocab: their targets are no categories."
            )
        return vocab

    @property
    def c(self) -> int:
        """How many numbers a model gives for a sample (or for a pixel of a mask): the number of
        classes, or of values. AttributeError where that is not known."""
        dataset = self._dataset
        c: int | None = getattr(dataset, "n_out", None)
        classes = getattr(dataset, "vocab", None)
        if c is None and not isinstance(dataset, Dataset) and classes is not None:
            c = len(classes)
        if c is None:
            raise AttributeError(
                "These DataLoaders do not say how many numbers a model should give: there is no "
                "target, several, or one of unknown size."
            )
        return c

    @property
    def n_inp(self) -> int | None:
        """How many elements of a batch are inputs; the others are targets. None where nobody says:
        then the last is the target, and an only one an input."""
        known = (getattr(holder, "n_inp", None) for holder in (self.train, self._dataset))
        return next((n_inp for n_inp in known if n_inp is not None), None)

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

    def check_alike(self) -> None:
        """Raise `DataError` in all processes of a run unless they hold the same data: as many
        samples, the same seed, and, looked at here and there, the same items. All must call it."""
        check_alike(self.loaders, world())

    def one_batch(self) -> Any:
        """A batch of the training loader, which is not advanced by it."""
        if isinstance(self.train, DataLoader | Batches):
            return self.train.one_batch()
        return next(iter(self.train))

    def test_dl(self, items: Any, with_labels: bool = False, bs: int = 0) -> DataLoader:
        """A loader of other items, treated as validation items are, in their order: paths, images,
        uint8 arrays, rows of a table, or a data frame; what the getters take.

        Without labels its batches are `(x,)`. `bs` is that of the validation loader unless given.
        """
        like = self._ours("test_dl", self.loaders[-1])
        dataset = self._dataset
        if not isinstance(dataset, Dataset):
            raise UsageError("test_dl needs loaders made by DataBlock.dataloaders().")
        return like.over(dataset.of(items, with_labels), bs or None)

    def decode_target(self, answer: Any) -> Any:
        """One answer of the model as a person knows it: the name of a class, the names of all that
        are there, a number. `answer` is as a loss's `decodes` gives it, without the batch axis."""
        dataset = self._dataset
        if isinstance(dataset, Dataset):
            return dataset.targets[0].decode(answer) if len(dataset.targets) == 1 else answer
        vocab = getattr(dataset, "vocab", None)
        return answer if vocab is None else vocab[int(answer)]

    def summary(self) -> None:
        """Print what the next sample and the next batch of training are after each stage."""
        from treadle.data.summary import print_walk

        print_walk(self._ours("summary", self.train))

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


def loader_types(blocks: Iterable[Block]) -> tuple[type[DataLoader], type[DataLoaders]]:
    """What makes batches of such elements, and what holds the loaders together."""
    asked = (block.loader_types for block in blocks)
    return next((types for types in asked if types is not None), (DataLoader, DataLoaders))
