"""Look at the data as the model gets it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data.blocks import BBoxLblBlock, Block, MaskBlock
from treadle.data.datasets import Dataset
from treadle.data.loaders import Batch, DataLoader
from treadle.data.targets import in_pixels
from treadle.errors import UsageError, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["show_batch", "show_results", "shown_images", "shown_labels"]

Size = tuple[int, int]


def shown_images(loader: DataLoader, x: torch.Tensor) -> list[NDArray[np.uint8]]:
    """The inputs `x` (B, 1 or 3, H, W) of a batch as uint8 images (H, W, 3), transforms undone."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UsageError(
            f"Inputs of shape {tuple(x.shape)} cannot be shown; expected images (B, 1 or 3, H, W)."
        )
    pixels = loader.decode(x).float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return list(pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy())


def shown_labels(dataset: Any, y: torch.Tensor) -> list[str]:
    """The targets `y` (B, ...) of a batch in words: their names in the vocab, or the numbers."""
    block = dataset.blocks[dataset.n_inp] if isinstance(dataset, Dataset) else None
    return [_in_words(block, value) for value in y.cpu()]


def show_batch(loader: DataLoader, batch: Batch, max_n: int = 9) -> Figure:
    """A figure of the first `max_n` images of a batch of `loader` with their targets: labels and
    numbers above them, masks, points and boxes in them."""
    images = _inputs(loader, batch, max_n)
    blocks = _target_blocks(loader, batch)
    targets = [element[: len(images)].cpu() for element in batch[loader.n_inp_of(batch) :]]
    rows = [list(zip(blocks, row, strict=True)) for row in zip(*targets, strict=True)]
    rows = rows or [[] for _ in images]
    titles = [", ".join(_titles(row)) for row in rows]
    return _show(images, titles, [[(row, True)] for row in rows], _size(batch))


def show_results(loader: DataLoader, batch: Batch, answers: torch.Tensor, max_n: int = 9) -> Figure:
    """A figure of the first `max_n` images of a batch of `loader` with what is true and what the
    model says. Above an image stands its label, and below that the model's, where it is another
    (of numbers, always).
    A mask has two pictures, the true one first. True points are blue, the model's orange.
    """
    images = _inputs(loader, batch, max_n)
    blocks = _target_blocks(loader, batch)
    if len(blocks) != 1:
        raise UsageError(f"show_results shows one target; these data have {len(blocks)}.")
    block = blocks[0]
    pairs = list(zip(batch[-1][: len(images)].cpu(), answers[: len(images)].cpu(), strict=True))
    if isinstance(block, MaskBlock):
        twice = [image for image in images for _ in range(2)]
        marks = [[([(block, mask)], True)] for pair in pairs for mask in pair]
        ncols = 2 * math.ceil(math.sqrt(len(images) / 2))  # the two stay side by side
        return _show(twice, ["label", "model"] * len(images), marks, _size(batch), ncols)
    if block is not None and block.kind is not None:
        drawn = [[([(block, y)], True), ([(block, said.view_as(y))], False)] for y, said in pairs]
        return _show(images, [""] * len(images), drawn, _size(batch))
    words = [(_in_words(block, y), _in_words(block, said)) for y, said in pairs]
    if batch[-1].is_floating_point():  # numbers are near, and hardly ever the same
        titles = [f"{actual}\nmodel: {said}" for actual, said in words]
    else:
        titles = [actual if actual == said else f"{actual}\nnot {said}" for actual, said in words]
    return _show(images, titles, [[] for _ in images], _size(batch))


def _size(batch: Batch) -> Size:
    """Of the first input, where places in the image lie."""
    return batch[0].shape[-2], batch[0].shape[-1]


def _inputs(loader: DataLoader, batch: Batch, max_n: int) -> list[NDArray[np.uint8]]:
    """The pictures of the first samples; several of a sample side by side."""
    inputs = [shown_images(loader, x[:max_n]) for x in batch[: loader.n_inp_of(batch)]]
    if len({image[0].shape[0] for image in inputs}) > 1:
        return inputs[0]
    return [np.concatenate(row, axis=1) for row in zip(*inputs, strict=True)]


def _target_blocks(loader: DataLoader, batch: Batch) -> Sequence[Block | None]:
    """The blocks of the targets that the batch has; None where there are none to ask."""
    count = len(batch) - loader.n_inp_of(batch)
    dataset = loader.dataset
    return dataset.targets[:count] if isinstance(dataset, Dataset) else [None] * count


Target = tuple[Block | None, torch.Tensor]


def _titles(row: Sequence[Target]) -> list[str]:
    """What is said above an image; the labels of boxes stand in it."""
    boxed = any(block is not None and block.kind == "boxes" for block, _ in row)
    return [
        _in_words(block, value)
        for block, value in row
        if (block is None or block.kind is None) and not (boxed and isinstance(block, BBoxLblBlock))
    ]


def _in_words(block: Block | None, value: torch.Tensor) -> str:
    known = block.decode(value) if block is not None else value
    if isinstance(known, torch.Tensor):
        known = known.tolist() if known.numel() <= 10 else f"{tuple(known.shape)} numbers"
    parts = known if isinstance(known, list) else [known]
    words = [f"{part:.4g}" if isinstance(part, float) else printable(part) for part in parts]
    return ", ".join(words) or "(none)"


def _show(
    images: list[NDArray[np.uint8]],
    titles: Sequence[str],
    marks: Sequence[Sequence[tuple[Sequence[Target], bool]]],
    size: Size,
    ncols: int | None = None,
) -> Figure:
    """The images with their titles, and in each the targets that are places in it."""
    from treadle.plots import show, show_images

    figure = show_images(images, titles, ncols)
    for axes, drawn in zip(figure.axes, marks, strict=True):
        for row, is_true in drawn:
            names = [
                [printable(block.vocab[int(i)]) for i in value]
                for block, value in row
                if isinstance(block, BBoxLblBlock) and block.vocab is not None
            ]
            for block, value in row:
                if block is not None and block.kind is not None:
                    _draw(axes, block, value, size, is_true, names[0] if names else [])
    return show(figure)


def _draw(
    axes: Axes, block: Block, value: torch.Tensor, size: Size, is_true: bool, names: list[str]
) -> None:
    """A target in its picture, whose middle of the first pixel is (0, 0)."""
    from treadle.plots import BLUE, ORANGE

    colour = BLUE if is_true else ORANGE
    if isinstance(block, MaskBlock):
        _draw_mask(axes, block, value.numpy())
    elif block.kind == "points":
        points = in_pixels("points", value, size).numpy() - 0.5
        axes.plot(points[:, 0], points[:, 1], "o", color=colour, markeredgecolor="white")
    elif block.kind == "boxes":
        for box, name in zip(
            in_pixels("boxes", value, size).numpy() - 0.5, names or [""] * len(value), strict=True
        ):
            _draw_box(axes, box, name, colour)


def _draw_mask(axes: Axes, block: MaskBlock, mask: NDArray[Any]) -> None:
    hidden = np.ma.masked_equal(mask, -1 if block.ignore is None else block.ignore)
    most = len(block.vocab) - 1 if block.vocab else int(mask.max(initial=1))
    axes.imshow(hidden, cmap="tab20", vmin=0, vmax=max(most, 1), alpha=0.5, interpolation="nearest")


def _draw_box(axes: Axes, box: NDArray[Any], name: str, colour: str) -> None:
    from matplotlib.patches import Rectangle

    left, top, right, bottom = box.tolist()
    if np.isnan(box).any():  # a place without a box
        return
    axes.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, linewidth=1.5)
    )
    if name:
        axes.text(
            *(left, top, name),
            color="white",
            fontsize=7,
            va="bottom",
            parse_math=False,
            clip_on=True,  # out of the title
        ).set_bbox({"facecolor": colour, "edgecolor": "none", "pad": 1})
