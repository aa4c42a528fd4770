"""What a classifier takes for what, from its predictions on a set of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from treadle.errors import UsageError
from treadle.interpret.base import LabelInterpretation, counts_of, names_of
from treadle.interpret.pictures import thumbnail
from treadle.interpret.samples import ask
from treadle.plots import in_short, plot_confusion_matrix, show
from treadle.run.record import ConfusedExample, Confusion
from treadle.world import main_speaks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class ClassificationInterpretation(LabelInterpretation):
    """Predictions beside the truth: `probs` (N, C), `targets` (N,) and `losses` (N,), on the CPU.

    `vocab` names the C classes; `items` are the N samples' sources (paths, images or arrays).

    >>> import torch
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
        if n and not 0 <= int(self.targets.min()) <= int(self.targets.max()) < len(self.vocab):
            raise UsageError(
                f"The targets are {int(self.targets.min())} to {int(self.targets.max())}; give "
                f"indices of the {len(self.vocab)} classes, from 0."
            )

    @classmethod
    def from_learner(
        cls,
        learn: Any,
        ds_idx: int = 1,
        dl: Any = None,
        act: Callable[[Tensor], Tensor] | None = None,
        vocab: Sequence[Any] | None = None,
    ) -> Self:
        """Predicts all samples of `learn.dls[ds_idx]`, or of `dl`, and keeps the results.

        Args:
            learn: a learner of a single label a sample.
            ds_idx: 1 for the validation samples, 0 for the training samples, in their order and
                without augmentation.
            dl: another loader with labels: `dls.test_dl(items, with_labels=True)`, or a
                `torch.utils.data.DataLoader`.
            act: makes probabilities of what the model gives; by default what the loss says, and
                softmax for a loss that says nothing.
            vocab: the names of the classes; by default those of the data.

        Raises:
            UsageError: if the predictions are not (N, C) with one class index a sample.
        """
        samples, (preds, targets, losses) = ask(learn, ds_idx, dl, act=act)
        if preds.ndim != 2 or targets.shape != preds.shape[:1] or targets.is_floating_point():
            raise UsageError(
                f"predictions of shape {tuple(preds.shape)} with targets of shape "
                f"{tuple(targets.shape)}, {str(targets.dtype).removeprefix('torch.')}, are not one "
                "label a sample; SegmentationInterpretation is for masks, "
                "RegressionInterpretation for numbers."
            )
        names = names_of(learn, samples.loader, preds.shape[1], vocab)
        probs = preds.float() if act is not None else _probabilities(preds.float())
        return cls(probs, targets, losses.float(), names, samples)

    @property
    def decoded(self) -> Tensor:
        """The predicted class of each sample: (N,) int64."""
        return self.probs.argmax(dim=1)

    def confusion_matrix(self) -> NDArray[np.int64]:
        """(C, C) counts: rows are the actual classes, columns the predicted ones."""
        return counts_of(self.targets, self.decoded, len(self.vocab))

    def confusion(self) -> Confusion:
        """The confusion matrix with its class names, as plain data."""
        return Confusion(list(self.vocab), self.confusion_matrix().tolist())

    def most_confused(self, min_val: int = 1) -> list[tuple[str, str, int]]:
        """(actual, predicted, n) of the pairs confused at least `min_val` times, most first."""
        return self.confusion().most_confused(min_val)

    def confused_examples(
        self, pairs: int = 6, k: int = 4, size: int = 128
    ) -> list[ConfusedExample]:
        """Of each of the most confused `pairs`, the `k` samples with the highest loss.

        Their images are thumbnails of at most `size` pixels a side.
        """
        matrix = self.confusion_matrix()
        np.fill_diagonal(matrix, 0)
        # by place in the vocabulary: two names may read the same
        cells = sorted(np.argwhere(matrix).tolist(), key=lambda cell: -matrix[*cell])
        found = []
        for actual, predicted in cells[:pairs]:
            is_pair = (self.targets == actual) & (self.decoded == predicted)
            (members,) = is_pair.nonzero(as_tuple=True)
            worst = members[self.losses[members].argsort(descending=True, stable=True)[:k]]
            found += [self.example(i, size) for i in worst.tolist()]
        return found

    def example(self, i: int, size: int = 128) -> ConfusedExample:
        """Sample `i` as a report shows it, with a thumbnail of at most `size` pixels a side."""
        return ConfusedExample(
            actual=self.vocab[int(self.targets[i])],
            predicted=self.vocab[int(self.decoded[i])],
            probability=float(self.probs[i].max()),
            loss=float(self.losses[i]),
            file_name=self.name(i),
            image=thumbnail(self.items[i], size),
        )

    def plot_confusion_matrix(self, normalize: bool = False) -> Figure:
        """The confusion matrix as a figure, shown if this is a notebook; with `normalize` as shares
        of each actual class."""
        return show(plot_confusion_matrix(self.confusion_matrix(), self.vocab, normalize))

    @main_speaks()
    def print_classification_report(self) -> None:
        """Prints precision, recall, F1 score and support of each class, as scikit-learn does.

        What is undefined, such as the precision of a class that was never predicted, is 0.
        """
        from sklearn.metrics import classification_report

        report = classification_report(
            self.targets.numpy(),
            self.decoded.numpy(),
            labels=range(len(self.vocab)),
            target_names=[in_short(name, 40) for name in self.vocab],
            zero_division=0,
        )
        print(report)

    def _title(self, i: int) -> str:
        actual, said = (in_short(self.vocab[int(t[i])], 16) for t in (self.targets, self.decoded))
        return f"is {actual}\nmodel: {said}, {float(self.probs[i].max()):.0%}"


def _probabilities(preds: Tensor) -> Tensor:
    """`preds` (N, C) if its rows are probabilities already, else its softmax: of scores, and of
    logarithms of probabilities too."""
    are = bool((preds >= 0).all()) and bool(((preds.sum(1) - 1).abs() < 1e-3).all())
    return preds if are else preds.softmax(dim=1)
