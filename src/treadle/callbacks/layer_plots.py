"""Pictures of what goes on inside a model: gradients by parameter, activations by layer.

As in `treadle.plots`, each makes a figure from plain numbers and returns it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from treadle.errors import UsageError
from treadle.plots import BLUE, GREEN, ORANGE, PINK, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = NDArray[np.floating[Any]]

FLOOR = 1e-5  # shares below it look like none: a logarithm cannot show that


def plot_gradients(names: Sequence[str], norms: Numbers) -> Figure:
    """The gradient norm of each parameter over the updates, on a logarithmic scale.

    `norms` is (updates, parameters). The two parameters with the greatest and the two with the
    smallest median are in colour and named in the order of their medians, the others grey: so
    gradients that explode or vanish are seen.

    >>> figure = plot_gradients(["weight", "bias"], np.array([[0.1, 2.0], [0.2, 1.0]]))
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['bias', 'weight']
    """
    seen = [i for i in range(len(names)) if (norms[:, i] > 0).any()]
    if not seen:
        raise UsageError("There are no gradients to plot: none was recorded. Train first.")
    seen.sort(key=lambda i: -np.nanmedian(norms[:, i]))
    with _panels(1, size=(8.0, 4.0)) as (figure, (axes,)):
        for i in seen[2:-2]:
            axes.plot(norms[:, i], color="#c3c7cd", linewidth=0.6)
        named = [*seen[:2], *seen[2:][-2:]]
        for i, color in zip(named, (ORANGE, PINK, GREEN, BLUE), strict=False):
            axes.plot(norms[:, i], color=color, linewidth=1.0, label=names[i])
        axes.set(yscale="log", xlabel="updates", ylabel="gradient norm (log scale)")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), title="by median")
    return figure


def plot_layer_stats(
    layer: str, batches: Sequence[int], stats: Mapping[str, Sequence[float]]
) -> Figure:
    """Numbers that describe one layer over the training batches, a panel each.

    >>> figure = plot_layer_stats("0.conv", [0, 10], {"mean": [0.0, 0.1], "std": [1.0, 0.9]})
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['mean', 'std']
    """
    _check_some(batches)
    with _panels(len(stats), size=(3.4, 2.8)) as (figure, panels):
        figure.suptitle(f"layer {layer}", fontweight="bold", fontsize=11)
        for axes, (name, values) in zip(panels, stats.items(), strict=True):
            axes.plot(batches, values, color=BLUE, linewidth=1.0)
            axes.set(xlabel="training batches", ylabel=name.replace("near_zero", "share near zero"))
    return figure


def plot_color_dim(layer: str, batches: Sequence[int], hist: Numbers, top: float) -> Figure:
    """Histograms of the absolute activations of one layer, a column a batch, the shares as colours
    on a logarithmic scale. `hist` is (batches, bins), the bins of equal width from 0 to `top`.

    A layer in good health fills the picture smoothly; where it stays dark, nothing happens, and a
    bright line at the bottom that grows is made of activations that died.

    >>> figure = plot_color_dim("0.conv", [0, 1], np.array([[0.9, 0.1], [0.5, 0.5]]), top=10.0)
    >>> figure.axes[0].get_ylabel()
    '|activation|'
    """
    from matplotlib.colors import LogNorm

    _check_some(batches)
    edges = np.linspace(0, top, hist.shape[1] + 1)
    columns = np.append(batches, batches[-1] + 1)
    with _panels(1, size=(8.0, 3.2)) as (figure, (axes,)):
        shares = np.maximum(hist, FLOOR).T
        image = axes.pcolormesh(columns, edges, shares, cmap="magma", norm=LogNorm(FLOOR, 1))
        figure.colorbar(image, label="share of activations")
        axes.set(title=f"layer {layer}", xlabel="training batches", ylabel="|activation|")
        axes.set_yticks([0, top / 2, top], ["0", f"{top / 2:g}", f"{top:g}+"])
    return figure


def _check_some(batches: Sequence[int]) -> None:
    if not batches:
        raise UsageError("There are no activations to plot: none was recorded. Train first.")


@contextmanager
def _panels(n: int, size: tuple[float, float]) -> Iterator[tuple[Figure, list[Any]]]:
    """A figure with `n` axes side by side, each of `size` inches, to be drawn on in our style."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(size[0] * n, size[1]), layout="constrained")
        yield figure, list(np.ravel(figure.subplots(1, n)))
