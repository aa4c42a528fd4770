"""What a classifier takes for what, from its predictions on a set of samples."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from treadle.errors import UsageError
from treadle.plots import plot_confusion_matrix, show
from treadle.run.record import ConfusedExample, Confusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class ClassificationInterpretation:
    """Predictions beside the truth: `probs` (N, C), `targets` (N,) and `losses` (N,), on the CPU.

    `vocab` names the C classes; `items` are the N samples' sources (paths, images or arrays).

    >>> probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    >>> targets, losses = torch.tensor([0, 1, 1]), torch.tensor([0.1, 0.9, 0.2])
    >>> vocab, items = ["cat", "dog"], ["a.jpg", "b.jpg", "c.jpg"]
    >>> interp = ClassificationInterpretation(probs, targets, losses, vocab, items)
    >>> interp.confusion_matrix().tolist(), interp.most_confused()
    ([[1, 0], [1, 1]], [('dog', 'cat', 1)])
    """

    probs: Tensor
    targets: Tensor
    losses: Tensor
    vocab: Sequence[str]
    items: Sequence[Any]

    def __post_init__(self) -> None:
        n = len(self.items)
        shapes = tuple(self.probs.shape), tuple(self.targets.shape), tuple(self.losses.shape)
        wanted = (n, len(self.vocab)), (n,), (n,)
        if shapes != wanted:
            raise UsageError(
                f"The shapes of probabilities, targets and losses are {shapes} for {n} items of "
                f"{len(self.vocab)} classes; give {wanted}, one class a sample."
            )

    @classmethod
    def from_learner(cls, learn: Any, dl: Any = None) -> ClassificationInterpretation:
        """Predicts all samples of `dl` (by default the validation set) and keeps the results."""
        dl = learn.dls.valid if dl is None else dl
        probs, targets, losses = learn.get_preds(dl=dl, with_loss=True)
        vocab = [str(name) for name in learn.dls.vocab]
        return cls(probs.cpu(), targets.cpu(), losses.cpu(), vocab, dl.dataset.items)

    @property
    def decoded(self) -> Tensor:
        """The predicted class of each sample: (N,) int64."""
        return self.probs.argmax(dim=1)

    def confusion_matrix(self) -> NDArray[np.int64]:
        """(C, C) counts: rows are the actual classes, columns the predicted ones."""
        c = len(self.vocab)
        cells = self.targets.long() * c + self.decoded
        return torch.bincount(cells, minlength=c * c).reshape(c, c).numpy()

    def confusion(self) -> Confusion:
        """The confusion matrix with its class names, as plain data."""
        return Confusion(list(self.vocab), self.confusion_matrix().tolist())

    def most_confused(self, min_val: int = 1) -> list[tuple[str, str, int]]:
        """(actual, predicted, n) of the pairs confused at least `min_val` times, most first."""
        return self.confusion().most_confused(min_val)

    def top_losses(self, k: int | None = None, largest: bool = True) -> tuple[Tensor, Tensor]:
        """The `k` largest (or smallest) losses, sorted, and the indices of their samples."""
        n = len(self.losses)
        losses, indices = self.losses.topk(n if k is None else min(k, n), largest=largest)
        return losses, indices

    def confused_examples(
        self, pairs: int = 6, k: int = 4, size: int = 128
    ) -> list[ConfusedExample]:
        """Of each of the most confused `pairs`, the `k` samples with the highest loss.

        Their images are thumbnails of at most `size` pixels a side.
        """
        index_of = {name: i for i, name in enumerate(self.vocab)}
        found = []
        for actual, predicted, _ in self.most_confused()[:pairs]:
            is_pair = (self.targets == index_of[actual]) & (self.decoded == index_of[predicted])
            (members,) = is_pair.nonzero(as_tuple=True)
            worst = members[self.losses[members].argsort(descending=True, stable=True)[:k]]
            found += [self.example(i, size) for i in worst.tolist()]
        return found

    def plot_confusion_matrix(self) -> Figure:
        """The confusion matrix as a figure, shown if this is a notebook."""
        return show(plot_confusion_matrix(self.confusion_matrix(), self.vocab))

    def print_classification_report(self) -> None:
        """Prints precision, recall, F1 score and support of each class, as scikit-learn does.

        What is undefined, such as the precision of a class that was never predicted, is 0.
        """
        from sklearn.metrics import classification_report

        report = classification_report(
            self.targets.numpy(),
            self.decoded.numpy(),
            labels=range(len(self.vocab)),
            target_names=list(self.vocab),
            zero_division=0,
        )
        print(report)

    def example(self, i: int, size: int = 128) -> ConfusedExample:
        """Sample `i` as a report shows it, with a thumbnail of at most `size` pixels a side."""
        item = self.items[i]
        is_path = isinstance(item, str | os.PathLike)
        return ConfusedExample(
            actual=self.vocab[int(self.targets[i])],
            predicted=self.vocab[int(self.decoded[i])],
            probability=float(self.probs[i].max()),
            loss=float(self.losses[i]),
            file_name=Path(item).name if is_path else f"sample {i}",
            image=thumbnail(item, size),
        )


def thumbnail(item: Any, size: int = 128) -> bytes | None:
    """A PNG of at most `size` pixels a side, in 256 colours to keep it small.

    `item` is a path, a Pillow image, or an array or CPU tensor of bytes, (H, W) or (H, W, 3).
    None for anything else, and for a file that is no readable image: a report goes without.
    """
    image = _open(item)
    if image is None:
        return None
    image = image.convert("RGB")
    image.thumbnail((size, size))
    file = io.BytesIO()
    image.quantize(256).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _open(item: Any) -> Image.Image | None:
    if isinstance(item, Image.Image):
        return item
    if isinstance(item, str | os.PathLike):
        try:
            with Image.open(item) as image:
                return image.convert("RGB")
        except OSError:
            return None
    if isinstance(item, np.ndarray | Tensor):
        array = np.asarray(item)
        is_image = array.dtype == np.uint8 and (array.ndim == 2 or array.shape[2:] == (3,))
        return Image.fromarray(array) if is_image else None
    return None
