"""Which pixels a model takes for what, and the pictures where it is worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from treadle.callbacks.gather import by_sample
from treadle.errors import UsageError
from treadle.interpret.base import Interpretation, Size, names_of
from treadle.interpret.pictures import pictures_of
from treadle.interpret.samples import SampleOrder, Samples, check_same, loader_of, samples_of
from treadle.loop import Callback
from treadle.plots import STYLE, in_short, plot_confusion_matrix, show
from treadle.run.record import Confusion
from treadle.world import main_speaks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Mask = NDArray[np.int64]
COLORS, ALPHA = "tab20", 0.55


@dataclass(frozen=True, eq=False)
class SegmentationInterpretation(Interpretation):
    """The pixels of N pictures, counted: `counts` (C, C), rows the actual classes, columns the
    predicted ones; and the loss of each picture, `losses` (N,), the mean over its pixels.

    `vocab` names the C classes. Masks are not kept: those of the worst pictures are asked of
    `learn` again.

    >>> import torch
    >>> counts = torch.tensor([[6, 2], [0, 4]])
    >>> interp = SegmentationInterpretation(counts, torch.zeros(1), ["sky", "tree"], [None], None)
    >>> interp.iou()
    {'sky': 0.75, 'tree': 0.6666666666666666}
    """

    counts: Tensor
    losses: Tensor
    vocab: Sequence[str]
    items: Sequence[Any]
    learn: Any
    ignore: int | None = None

    def __post_init__(self) -> None:
        n, c = len(self.items), len(self.vocab)
        shapes = tuple(self.counts.shape), tuple(self.losses.shape)
        if shapes != ((c, c), (n,)):
            raise UsageError(
                f"The shapes of counts and losses are {shapes} for {n} pictures and {c} classes; "
                f"give {((c, c), (n,))}."
            )

    @classmethod
    def from_learner(
        cls, learn: Any, ds_idx: int = 1, dl: Any = None, vocab: Sequence[Any] | None = None
    ) -> Self:
        """Counts the pixels of `learn.dls[ds_idx]`, or of the loader `dl`.

        The model gives scores (B, C, H, W), targets are (B, H, W) of class indices. Pixels that
        the loss leaves out (its `ignore_index`) are not counted. A single score a pixel is two
        classes: 1 above the loss's threshold, or above 0. `vocab` names the classes; by default
        the data do.

        Raises:
            UsageError: if predictions and targets are not of these shapes.
        """
        loader = loader_of(learn, ds_idx, dl)
        count, order, epoch = _PixelCount(), SampleOrder(), getattr(loader, "epoch", 0)
        learn.ask([count, order], dl=loader, with_loss=True)
        if count.counts is None:
            raise UsageError("there is nothing to interpret: the loader gave no batch.")
        losses = torch.cat(count.losses).float().cpu()
        names = names_of(learn, loader, len(count.counts), vocab)
        if int(count.stray):
            raise UsageError(
                f"{int(count.stray)} pixels of the targets are none of the {len(names)} classes; "
                "MaskBlock(ignore=...) or the loss's ignore_index leaves pixels out."
            )
        samples = samples_of(loader, len(losses), order, epoch)
        return cls(count.counts.cpu(), losses, names, samples, learn, count.ignore)

    def confusion_matrix(self) -> NDArray[np.int64]:
        """(C, C) counts of pixels: rows are the actual classes, columns the predicted ones."""
        matrix: NDArray[np.int64] = self.counts.numpy()
        return matrix

    def most_confused(self, min_val: int = 1) -> list[tuple[str, str, int]]:
        """(actual, predicted, pixels) of the pairs confused in at least `min_val` pixels, most
        first."""
        return Confusion(list(self.vocab), self.counts.tolist()).most_confused(min_val)

    def iou(self) -> dict[str, float]:
        """Of each class, the pixels that are of it and were said to be, over those that are either
        (Jaccard). NaN for a class that neither occurs nor was predicted."""
        return dict(zip(self.vocab, self._iou().tolist(), strict=True))

    def _iou(self) -> NDArray[np.float64]:
        counts = self.counts.numpy().astype(np.float64)
        both = counts.diagonal()
        return _ratio(both, counts.sum(0) + counts.sum(1) - both)

    @main_speaks()
    def print_report(self) -> None:
        """Prints of each class IoU, precision, recall and the share of all pixels, then their means
        over the classes that occur, and the share of pixels that are right.

        What is undefined is a dash and not in the means.
        """
        counts = self.counts.numpy().astype(np.float64)
        both, true, said = counts.diagonal(), counts.sum(1), counts.sum(0)
        columns = [self._iou(), _ratio(both, said), _ratio(both, true), true / max(true.sum(), 1)]
        names = [in_short(name, 40) for name in self.vocab]
        width = max(map(len, [*names, "mean"]))
        print(" " * width, *(f"{head:>9}" for head in ("IoU", "precision", "recall", "pixels")))
        for name, *values in zip(names, *columns, strict=True):
            print(f"{name:<{width}}", *map(_cell, values))
        means = [float(np.nanmean(c)) if np.isfinite(c).any() else np.nan for c in columns[:3]]
        print(f"{'mean':<{width}}", *map(_cell, means))
        print(f"{'right':<{width}}", _cell(float(both.sum() / max(true.sum(), 1))))

    def plot_confusion_matrix(self, normalize: bool = True) -> Figure:
        """The confusion matrix as a figure, as shares of each actual class unless `normalize` is
        False."""
        return show(plot_confusion_matrix(self.confusion_matrix(), self.vocab, normalize))

    def _figure(self, places: Sequence[int], ncols: int | None, figsize: Size | None) -> Figure:
        """Three panels a picture: itself, with its true mask, with the model's."""
        if not isinstance(self.items, Samples):
            raise UsageError("plot_top_losses needs an interpretation made by from_learner.")
        batch = self.items.batch(places)
        raw, targets, losses = self.learn.get_preds(dl=[batch], with_loss=True, act=_as_it_is)
        check_same(losses, self.losses[places])
        said = decoded_masks(self.learn.loss_func, raw, targets)
        images = pictures_of(self.items.loader, batch[0])
        titles = [f"loss {loss:.3g}" for loss in losses.tolist()]
        rows = list(zip(titles, images, targets.numpy(), said.numpy(), strict=True))
        return self._panels(rows, ncols or 1, figsize)

    def _panels(
        self, rows: Sequence[tuple[str, Any, Mask, Mask]], ncols: int, figsize: Size | None
    ) -> Figure:
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        high = math.ceil(len(rows) / ncols)
        size = figsize or (7.2 * ncols, 2.5 * high + 0.4)
        with rc_context(STYLE):
            figure = Figure(figsize=size, layout="constrained")
            panels = figure.subplots(high, 3 * ncols, squeeze=False).reshape(-1, 3)
            for axes in panels[len(rows) :].flat:
                axes.remove()
            for (plain, true, model), (title, image, target, said) in zip(
                panels, rows, strict=False
            ):
                self._draw(plain, title, image)
                self._draw(true, "label", image, target, target)
                self._draw(model, "model", image, said, target)
            self._legend(figure, [mask for _, _, *masks in rows for mask in masks])
        return figure

    def _draw(
        self, axes: Axes, title: str, image: Any, mask: Mask | None = None, target: Any = None
    ) -> None:
        """The picture, and the mask over it, without what counts for nothing in `target`."""
        axes.imshow(image, cmap="gray")
        axes.set_title(title, fontsize=9, fontweight="normal")
        axes.set_axis_off()
        if mask is not None:
            shown = np.ma.masked_array(mask, self.ignore is not None and target == self.ignore)
            most = max(len(self.vocab) - 1, 1)
            axes.imshow(shown, COLORS, vmin=0, vmax=most, alpha=ALPHA, interpolation="nearest")

    def _legend(self, figure: Figure, masks: Sequence[Mask]) -> None:
        """The colours of the classes that are there, at most twenty."""
        from matplotlib import colormaps
        from matplotlib.patches import Patch

        there = [i for i in np.unique(np.stack(masks)).tolist() if 0 <= i < len(self.vocab)]
        patches = [
            Patch(
                color=colormaps[COLORS](i / max(len(self.vocab) - 1, 1)),
                alpha=ALPHA,
                label=in_short(self.vocab[i]),
            )
            for i in there[:20]
        ]
        legend = figure.legend(handles=patches, loc="outside lower center", ncols=4)
        for text in legend.get_texts():  # a class name may hold a dollar sign
            text.set_parse_math(False)


class _PixelCount(Callback):
    """Counts pairs (actual, predicted) of pixels, on the device, and keeps the losses."""

    run_train = False

    def before_validate(self) -> None:
        self.counts: Tensor | None = None
        self.stray: Tensor | int = 0
        self.losses: list[Tensor] = []
        self.ignore: int | None = getattr(self.loss_func, "ignore_index", None)

    def after_batch(self) -> None:
        if self.pred is None:  # of a batch that was cancelled
            return
        pred, target = self.pred, self.y
        if not isinstance(pred, Tensor) or not isinstance(target, Tensor):
            raise UsageError("an interpretation is of one prediction and one target a sample.")
        said = decoded_masks(self.loss_func, pred, target)
        c = pred.shape[1] if pred.numel() > target.numel() else 2
        if self.counts is None:
            self.counts = torch.zeros(c * c, dtype=torch.int64, device=pred.device)
        kept = target != self.ignore if self.ignore is not None else torch.ones_like(said).bool()
        known = kept & (target >= 0) & (target < c)
        self.stray = self.stray + (kept & ~known).sum()
        cells = torch.where(known, target.long() * c + said, 0).reshape(-1)
        # A sum and no choice of pixels: nothing has to wait for how many there are.
        self.counts.index_add_(0, cells, known.reshape(-1).long())
        self.losses.append(by_sample(self.loss.detach(), len(target)))

    def after_validate(self) -> None:
        if self.counts is not None:
            c = round(len(self.counts) ** 0.5)
            self.counts = self.counts.reshape(c, c)


def decoded_masks(loss_func: Any, pred: Tensor, target: Tensor) -> Tensor:
    """The class of each pixel that scores `pred` say, int64, in the shape of `target`."""
    if pred.numel() == target.numel():
        decodes = getattr(loss_func, "decodes", None)
        said: Tensor = decodes(pred) if decodes is not None else pred > 0
        return said.reshape(target.shape).long()
    if pred.ndim != target.ndim + 1 or (pred.shape[0], *pred.shape[2:]) != target.shape:
        raise UsageError(
            f"predictions of shape {tuple(pred.shape)} with targets of shape "
            f"{tuple(target.shape)} are no masks; expected (B, classes, H, W) with (B, H, W). "
            "ClassificationInterpretation is for one label a sample."
        )
    return pred.argmax(dim=1)


def _as_it_is(pred: Tensor) -> Tensor:
    return pred


def _ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)
    return found


def _cell(value: float) -> str:
    return f"{value:9.4f}" if np.isfinite(value) else f"{'–':>9}"
