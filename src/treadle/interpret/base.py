"""What all interpretations share: the losses, and the samples where they are worst."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from treadle.data.describe import shortened
from treadle.errors import UsageError
from treadle.interpret.pictures import opened, pictures_of
from treadle.interpret.samples import Samples, check_same
from treadle.plots import show, show_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_FEW = 5  # words that the name of a file may have

Size = tuple[float, float]
"""(width, height) of a figure, in inches."""


class Interpretation(ABC):
    """The loss of each of N samples, `losses` (N,), and the samples, `items`."""

    losses: Tensor
    items: Sequence[Any]

    def top_losses(self, k: int | None = None, largest: bool = True) -> tuple[Tensor, Tensor]:
        """The `k` largest (or smallest) losses, sorted, and the places of their samples.

        All of them, without a `k`. A loss that is NaN counts as the largest.
        """
        n = len(self.losses)
        if k is not None and k < 1:
            raise UsageError(f"top_losses got k={k}; give 1 or more, or leave it out for all.")
        return self.losses.topk(n if k is None else min(k, n), largest=largest)

    def plot_top_losses(
        self,
        k: int = 9,
        largest: bool = True,
        ncols: int | None = None,
        figsize: Size | None = None,
    ) -> Figure:
        """A figure of the `k` samples with the largest (or smallest) losses, the first one first:
        as the model got them, with what is true, what the model said, and the loss.

        `ncols` is how many stand side by side, `figsize` (width, height) in inches.

        Raises:
            UsageError: if the inputs are no pictures, or the loader no longer gives them.
        """
        return show(self._figure(self.top_losses(k, largest)[1].tolist(), ncols, figsize))

    def name(self, i: int) -> str:
        """What sample `i` is called: its file, the beginning of its text, or its number."""
        item = self.items[i]
        if isinstance(item, str) and len(item.split()) > _FEW:
            return shortened(item)
        return Path(item).name if isinstance(item, str | os.PathLike) else f"sample {i}"

    @abstractmethod
    def _figure(self, places: Sequence[int], ncols: int | None, figsize: Size | None) -> Figure:
        """The samples at `places`."""


class LabelInterpretation(Interpretation):
    """Of samples with one target each, `targets` (N, ...), that is kept: a picture a sample."""

    targets: Tensor

    def _figure(self, places: Sequence[int], ncols: int | None, figsize: Size | None) -> Figure:
        titles = [f"{self._title(i)}\nloss {float(self.losses[i]):.3g}" for i in places]
        figure = show_images(self._pictures(places), titles, ncols, figsize)
        for axes, i in zip(figure.axes, places, strict=True):
            self._draw(axes, i)
        return figure

    def _pictures(self, places: Sequence[int]) -> list[Any]:
        if not isinstance(self.items, Samples):
            return opened(self.items, places)
        batch = self.items.batch(places)
        check_same(batch[-1], self.targets[places])
        return pictures_of(self.items.loader, batch[0])

    @abstractmethod
    def _title(self, i: int) -> str:
        """What stands above sample `i`."""

    def _draw(self, axes: Axes, i: int) -> None:
        """What is to be seen in the picture of sample `i`, beside its pixels."""
        return


def counts_of(actual: Tensor, given: Tensor, c: int) -> NDArray[np.int64]:
    """(C, C) counts of pairs (actual, given) of classes."""
    cells = actual.reshape(-1).long() * c + given.reshape(-1)
    return cells.bincount(minlength=c * c).reshape(c, c).numpy()


def names_of(learn: Any, loader: Any, c: int, vocab: Sequence[Any] | None) -> list[str]:
    """The names of `c` classes: those given, the data's, torchvision's `classes`, or numbers."""
    dataset = getattr(loader, "dataset", None)
    own = getattr(learn.dls, "vocab", None)
    if own and isinstance(own[-1], list):  # of a text, its tokens come before the classes
        own = own[-1]
    known = [vocab, own, getattr(dataset, "classes", None)]
    names = next((list(names) for names in known if names is not None), list(range(c)))
    if len(names) != c:
        raise UsageError(
            f"the model gives {c} numbers a prediction, and there are {len(names)} classes "
            f"({', '.join(map(str, names[:5]))}{', ...' * (len(names) > 5)}); give vocab= with the "
            "name of each, in their order."
        )
    return [str(name) for name in names]
