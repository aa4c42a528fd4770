"""How far a model's numbers are from the true ones, and where they are worst."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from treadle.errors import UsageError
from treadle.interpret.base import LabelInterpretation
from treadle.interpret.samples import ask
from treadle.plots import BLUE, ORANGE, STYLE, in_short, show
from treadle.world import main_speaks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class RegressionInterpretation(LabelInterpretation):
    """Numbers beside the true ones: `preds` and `targets` (N, n) and `losses` (N,), on the CPU.

    `names` are those of the n numbers; `items` are the N samples' sources. A target that is NaN is
    not known, and counts for nothing. Numbers of points in an image are x and y by turns, -1 to 1
    from edge to edge.

    >>> import torch
    >>> preds, targets = torch.tensor([[1.0], [2.5]]), torch.tensor([[1.0], [2.0]])
    >>> interp = RegressionInterpretation(preds, targets, torch.zeros(2), ["age"], [None, None])
    >>> interp.residuals.flatten().tolist(), interp.report()["age"]["max error"]
    ([0.0, 0.5], 0.5)
    """

    preds: Tensor
    targets: Tensor
    losses: Tensor
    names: Sequence[str]
    items: Sequence[Any]
    points: bool = False

    def __post_init__(self) -> None:
        n = len(self.items)
        shapes = tuple(self.preds.shape), tuple(self.targets.shape), tuple(self.losses.shape)
        wanted = (n, len(self.names)), (n, len(self.names)), (n,)
        if shapes != wanted:
            raise UsageError(
                f"The shapes of predictions, targets and losses are {shapes} for {n} items of "
                f"{len(self.names)} numbers; give {wanted}."
            )

    @classmethod
    def from_learner(
        cls,
        learn: Any,
        ds_idx: int = 1,
        dl: Any = None,
        act: Callable[[Tensor], Tensor] | None = None,
        names: Sequence[str] | None = None,
    ) -> Self:
        """Predicts all samples of `learn.dls[ds_idx]`, or of the loader `dl`.

        `act` is applied to what the model gives, by default the loss's own activation. `names` are
        those of the numbers; without them they are "value", or "value 0", "value 1", ...

        Raises:
            UsageError: if there are not as many predicted numbers as true ones.
        """
        samples, (preds, targets, losses) = ask(learn, ds_idx, dl, act=act)
        if preds.numel() != targets.numel() or not targets.is_floating_point():
            raise UsageError(
                f"predictions of shape {tuple(preds.shape)} with targets of shape "
                f"{tuple(targets.shape)}, {str(targets.dtype).removeprefix('torch.')}, are not as "
                "many numbers of both; ClassificationInterpretation is for labels, "
                "SegmentationInterpretation for masks."
            )
        flat = targets.reshape(len(targets), -1).float()
        n = flat.shape[1]
        names = names or (["value"] if n == 1 else [f"value {i}" for i in range(n)])
        preds = preds.reshape(flat.shape).float()
        points = targets.ndim == 3 and targets.shape[2] == 2
        return cls(preds, flat, losses.float(), [str(name) for name in names], samples, points)

    @property
    def residuals(self) -> Tensor:
        """Predicted minus true: (N, n)."""
        return self.preds - self.targets

    def report(self) -> dict[str, dict[str, float]]:
        """By name: `mae`, `rmse`, `bias` (the mean residual), `max error` and `r2` (1 is perfect, 0
        as good as the mean of the targets; NaN where all targets are one value)."""
        return {
            name: _figures(self.preds[:, i].double(), self.targets[:, i].double())
            for i, name in enumerate(self.names)
        }

    @main_speaks()
    def print_report(self) -> None:
        """Prints `report()` as a table."""
        report = self.report()
        heads = ["mae", "rmse", "bias", "max error", "r2"]
        names = [in_short(name, 40) for name in report]
        width = max(map(len, names))
        print(" " * width, *(f"{head:>10}" for head in heads))
        for name, figures in zip(names, report.values(), strict=True):
            print(f"{name:<{width}}", *(f"{figures[head]:10.4g}" for head in heads))

    def plot_residuals(self) -> Figure:
        """Two panels a number, at most four of them: predicted over true values with the diagonal,
        and the residuals counted."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        n = min(len(self.names), 4)
        with rc_context(STYLE):
            figure = Figure(figsize=(8.8, 3.2 * n), layout="constrained")
            for i, (scatter, histogram) in enumerate(figure.subplots(n, 2, squeeze=False)):
                known = self.targets[:, i].isfinite() & self.preds[:, i].isfinite()
                true, said = self.targets[known, i].numpy(), self.preds[known, i].numpy()
                if len(true):
                    ends = [min(true.min(), said.min()), max(true.max(), said.max())]
                    scatter.plot(ends, ends, color="#8a8f98", linewidth=1)
                scatter.plot(true, said, "o", color=BLUE, markersize=3, alpha=0.6)
                name = in_short(self.names[i])
                scatter.set_xlabel(f"actual {name}", parse_math=False)
                scatter.set_ylabel(f"predicted {name}", parse_math=False)
                histogram.hist(said - true, bins=min(40, 2 * math.isqrt(len(true)) + 1), color=BLUE)
                histogram.axvline(0, color="#8a8f98", linewidth=1)
                histogram.set(xlabel="predicted - actual", ylabel="samples")
        return show(figure)

    def _title(self, i: int) -> str:
        if self.points:
            return "true blue, model orange"
        actual, said = (", ".join(f"{v:.4g}" for v in t[i].tolist()) for t in self._both)
        return f"is {in_short(actual)}\nmodel: {in_short(said)}"

    def _draw(self, axes: Axes, i: int) -> None:
        if self.points:
            height, width = axes.images[0].get_array().shape[:2]  # type: ignore[union-attr]
            for values, color in zip(self._both, (BLUE, ORANGE), strict=True):
                x, y = ((values[i].reshape(-1, 2) + 1) / 2).unbind(1)
                xs, ys = (x * width - 0.5).numpy(), (y * height - 0.5).numpy()
                axes.plot(xs, ys, "o", color=color, markeredgecolor="white")

    @property
    def _both(self) -> tuple[Tensor, Tensor]:
        return self.targets, self.preds


def _figures(pred: Tensor, target: Tensor) -> dict[str, float]:
    known = target.isfinite()
    pred, target = pred[known], target[known]
    if not len(target):
        return dict.fromkeys(["mae", "rmse", "bias", "max error", "r2"], float("nan"))
    residual = pred - target
    spread = (target - target.mean()).square().sum()
    r2 = 1 - residual.square().sum() / spread if spread > 0 else torch.tensor(torch.nan)
    return {
        "mae": residual.abs().mean().item(),
        "rmse": residual.square().mean().sqrt().item(),
        "bias": residual.mean().item(),
        "max error": residual.abs().max().item(),
        "r2": r2.item(),
    }
