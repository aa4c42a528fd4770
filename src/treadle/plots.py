"""Pictures of training: functions from plain numbers to matplotlib figures.

Nothing here knows a learner, and nothing touches pyplot's global state: a figure is made, drawn
upon and returned; the caller saves it (`figure.savefig("loss.png")`) or hands it to `show`.
All of them wear `STYLE`. matplotlib is imported on first use.
"""

from __future__ import annotations

import base64
import io
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from treadle.errors import UsageError, nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for all common kinds of colour blindness.
BLUE, ORANGE, GREEN, PINK, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#8a8f98",
    "axes.grid": True,
    "axes.labelcolor": "#3c4148",
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.color": "#e8e8e6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "xtick.color": "#6b7078",
    "ytick.color": "#6b7078",
}


def plot_loss(
    losses: Sequence[float],
    iters: Sequence[int] = (),
    valid_losses: Sequence[float] = (),
    skip_start: int = 5,
    ax: Axes | None = None,
) -> Figure:
    """The training loss at each update, and the validation loss at the end of each epoch.

    `iters` holds the number of updates made when each epoch ended, `valid_losses` the loss of
    each epoch. The first `skip_start` updates, whose losses are large and say little, are left
    out unless nothing would remain. Draws on `ax` if one is given.

    >>> losses = [2.0, 1.5, 1.2, 1.1]
    >>> figure = plot_loss(losses, iters=[2, 4], valid_losses=[1.6, 1.3], skip_start=0)
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['train', 'valid']
    """
    _check_same_length("iters", iters, "valid_losses", valid_losses)
    skip = skip_start if len(losses) > skip_start else 0
    with _style():
        axes = _axes() if ax is None else ax
        axes.plot(range(skip, len(losses)), losses[skip:], color=BLUE, label="train")
        ends = [(i, v) for i, v in zip(iters, valid_losses, strict=True) if i >= skip]
        if ends:
            at, values = zip(*ends, strict=True)
            axes.plot(at, values, color=ORANGE, marker="o", markersize=4, label="valid")
        axes.set(xlabel="updates", ylabel="loss")
        if ends:
            axes.legend()
    return _figure_of(axes)


def plot_sched(hps: Mapping[str, Sequence[float]], keys: Sequence[str] | None = None) -> Figure:
    """The value of each hyper-parameter at each update, a panel each; `keys` chooses some.

    Raises UsageError for a key that was not recorded.

    >>> figure = plot_sched({"lr": [0.1, 0.2, 0.1], "mom": [0.95, 0.85, 0.95]})
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['lr', 'mom']
    """
    names = list(hps) if keys is None else list(keys)
    for name in names:
        if name not in hps:
            raise UsageError(f"No hyper-parameter {name!r} was recorded; {nearest(name, hps)}")
    if not names:
        raise UsageError("There is no schedule to plot: nothing was recorded. Train first.")
    with _style():
        panels = _panels(len(names))
        for axes, name in zip(panels, names, strict=True):
            axes.plot(hps[name], color=BLUE)
            axes.set(xlabel="updates", ylabel=name)
    return _figure_of(panels[0])


def plot_lr_find(
    lrs: Sequence[float],
    losses: Sequence[float],
    suggestions: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """The loss over the learning rate (logarithmic), with a mark at each suggestion.

    `suggestions` gives (learning rate, loss) by name.

    >>> figure = plot_lr_find([1e-3, 1e-2, 1e-1], [2.3, 1.9, 2.6], {"valley": (1e-2, 1.9)})
    >>> figure.axes[0].get_xscale()
    'log'
    """
    _check_same_length("lrs", lrs, "losses", losses)
    with _style():
        axes = _axes()
        axes.plot(lrs, losses, color=BLUE)
        colors = (ORANGE, GREEN, PINK, SKY)
        for i, (name, (lr, loss)) in enumerate((suggestions or {}).items()):
            label = f"{name}: {lr:.2e}"
            axes.plot([lr], [loss], "o", color=colors[i % len(colors)], markersize=7, label=label)
        axes.set(xscale="log", xlabel="learning rate (log scale)", ylabel="loss")
        if suggestions:
            axes.legend()
    return _figure_of(axes)


def plot_metrics(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Figure:
    """Every number of the table over the epochs: the losses in one panel, each metric in its own.

    `names` heads the columns of `rows` (one row an epoch); the columns "epoch" and "time" are
    taken as what they are and not plotted.

    >>> names = ["train_loss", "valid_loss", "accuracy"]
    >>> figure = plot_metrics(names, [[1.0, 1.1, 0.6], [0.7, 0.9, 0.7]])
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['loss', 'accuracy']
    """
    columns = _columns(names, rows)
    epochs = columns.pop("epoch", None) or list(range(len(rows)))
    columns.pop("time", None)
    if not rows or not columns:
        raise UsageError("There are no metrics to plot: no epoch was recorded. Train first.")
    losses = [n for n in columns if n in ("train_loss", "valid_loss")]
    metrics = [n for n in columns if n not in losses]
    with _style():
        panels = _panels(len(metrics) + bool(losses))
        for name in losses:
            color = BLUE if name == "train_loss" else ORANGE
            label = name.removesuffix("_loss")
            panels[0].plot(epochs, columns[name], "o-", markersize=4, color=color, label=label)
        if losses:
            panels[0].set(xlabel="epoch", ylabel="loss")
            panels[0].legend()
        for axes, name in zip(panels[bool(losses) :], metrics, strict=True):
            axes.plot(epochs, columns[name], "o-", markersize=4, color=GREEN)
            axes.set(xlabel="epoch", ylabel=name)
        for axes in panels:
            axes.locator_params(axis="x", integer=True)  # there is no epoch 2.5
    return _figure_of(panels[0])


def plot_confusion_matrix(
    cm: NDArray[np.integer[Any]], vocab: Sequence[object], normalize: bool = False
) -> Figure:
    """Counts of (actual class, predicted class) as shades, with the numbers up to 30 classes.

    `cm` is (classes, classes), rows actual. A shade is a share of the row, so that a rare class
    shows its errors as plainly as a common one; with `normalize` the numbers are these shares.

    >>> figure = plot_confusion_matrix(np.array([[9, 1], [2, 8]]), ["cat", "dog"])
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['9', '1', '2', '8']
    """
    counts = np.asarray(cm)
    n = len(vocab)
    if counts.shape != (n, n):
        raise UsageError(
            f"The confusion matrix has shape {counts.shape} for {n} classes; give ({n}, {n})."
        )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(4.0, 0.5 * n + 2.0), 12.0)
    with _style():
        axes = _axes(figsize=(side, side))
        axes.grid(visible=False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel="predicted", ylabel="actual")
        if n <= 30:
            _label_cells(axes, shares if normalize else counts, shares, vocab)
    return _figure_of(axes)


def show_images(
    images: Sequence[Any],
    titles: Sequence[object] | None = None,
    ncols: int | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """A grid of images with a title above each.

    An image is anything that becomes an array (H, W), (H, W, 3 or 4) or (1 or 3, H, W): a Pillow
    image, an array, a CPU tensor. Bytes are taken as 0..255, floats as 0..1 and clipped.
    `figsize` is in inches.

    >>> figure = show_images([np.zeros((4, 4)), np.ones((3, 4, 4))], ["black", "white"])
    >>> [axes.get_title() for axes in figure.axes]
    ['black', 'white']
    """
    if len(images) == 0:
        raise UsageError("There are no images to show: the list is empty.")
    names = [""] * len(images) if titles is None else [_title(title) for title in titles]
    _check_same_length("images", images, "titles", names)
    cols = ncols or math.ceil(math.sqrt(len(images)))
    cols = min(cols, len(images))
    with _style():
        panels = _panels(len(images), ncols=cols, size=(2.2, 2.4), figsize=figsize)
        for axes, image, name in zip(panels, images, names, strict=True):
            axes.imshow(_pixels(image), cmap="gray")
            # A class name may hold a dollar sign: it is text, not mathematics.
            axes.set_title(name, fontsize=9, fontweight="normal", parse_math=False)
            axes.set_axis_off()
    return _figure_of(panels[0])


def show(figure: Figure) -> Figure:
    """Display `figure` now if this is a notebook, and return it; elsewhere only return it.

    A figure that was shown and is then also the value of the cell's last line is not shown
    again, so a function may end with `return show(figure)`. It is shown again in another cell,
    or after it was changed.
    """
    shell = notebook_shell()
    if shell is None:
        return figure
    shown_in: int | None = None

    def display() -> None:
        nonlocal shown_in
        if shell.execution_count != shown_in or figure.stale:
            _publish(shell, figure, _png(figure))
        shown_in = shell.execution_count
        figure.stale = False  # saving a figure sets it, as any change does

    display()
    # IPython asks an object for this method before it looks for any other picture of it.
    figure._ipython_display_ = display  # type: ignore[attr-defined]
    return figure


def in_short(name: object, most: int = 24) -> str:
    """A name as a label on one line: at most `most` characters, of a longer one its two ends, and
    nothing that a font has no picture of, such as control characters.

    >>> in_short("a\\tb"), in_short("the long-tailed tit of Scandinavia", most=16)
    ('a b', 'the long…dinavia')
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in str(name)).split())
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def notebook_shell() -> Any:
    """The running IPython shell if a kernel is behind it, else None. Imports nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None


def _title(title: object) -> str:
    return "\n".join(in_short(line, 28) for line in str(title).split("\n"))


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=2 * figure.dpi)  # twice: sharp on dense screens
    return file.getvalue()


def _publish(shell: Any, figure: Figure, png: bytes) -> None:
    width, height = figure.get_size_inches() * figure.dpi
    shell.display_pub.publish(
        data={"image/png": base64.b64encode(png).decode(), "text/plain": repr(figure)},
        metadata={"image/png": {"width": int(width), "height": int(height)}},
    )


def _style() -> Any:
    from matplotlib import rc_context

    return rc_context(STYLE)


def _axes(figsize: tuple[float, float] = (7.0, 4.0)) -> Axes:
    return _panels(1, ncols=1, size=figsize)[0]


def _panels(
    n: int,
    ncols: int | None = None,
    size: tuple[float, float] = (4.4, 2.8),
    figsize: tuple[float, float] | None = None,
) -> list[Axes]:
    """`n` axes of a new figure, row by row, each of `size` inches unless `figsize` is given."""
    from matplotlib.figure import Figure

    cols = ncols or min(n, 2)
    rows = math.ceil(n / cols)
    figure = Figure(figsize=figsize or (size[0] * cols, size[1] * rows), layout="constrained")
    return [figure.add_subplot(rows, cols, i + 1) for i in range(n)]


def _figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def _label_cells(
    axes: Axes, written: NDArray[Any], shares: NDArray[Any], vocab: Sequence[object]
) -> None:
    """The names at both sides, and `written` in the cells: whole numbers or shares."""
    names, form = [in_short(name) for name in vocab], "" if written.dtype.kind in "iu" else ".2f"
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=90, parse_math=False)
    axes.set_yticks(ticks, names, parse_math=False)
    for i in ticks:
        for j in ticks:
            color = "white" if shares[i, j] > 0.5 else "#3c4148"
            axes.text(j, i, f"{written[i, j]:{form}}", ha="center", va="center", color=color)


def _pixels(image: Any) -> NDArray[Any]:
    """`image` as an array that matplotlib can show: (H, W), (H, W, 3) or (H, W, 4)."""
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3):
        raise UsageError(
            f"An image has shape {array.shape}; give (H, W), (H, W, channels) or (channels, H, W)."
        )
    return np.clip(array, 0, 1) if array.ndim == 3 and array.dtype.kind == "f" else array


def _columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
    for i, row in enumerate(rows):
        if len(row) != len(names):
            raise UsageError(
                f"Row {i} of the table has {len(row)} values for {len(names)} names "
                f"({', '.join(names)}); give one value a name."
            )
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _check_same_length(a: str, xs: Sequence[Any], b: str, ys: Sequence[Any]) -> None:
    if len(xs) != len(ys):
        raise UsageError(f"{a} has {len(xs)} entries and {b} has {len(ys)}; give as many of each.")
