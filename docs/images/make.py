"""The pictures of docs/data.md: one drawn scene on its way through the data pipeline.

Run it from anywhere; it writes beside itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from treadle.data import (
    DataBlock,
    DataLoader,
    Draws,
    ImageBlock,
    IndexSplitter,
    MaskBlock,
    Normalize,
    PointBlock,
    Resize,
    aug_transforms,
    imagenet_stats,
    shown_images,
)
from treadle.data.targets import in_pixels
from treadle.plots import ORANGE, show_images

HERE = Path(__file__).parent
HEIGHT, WIDTH, FINER = 240, 320, 4
CODES = ["air", "sea", "land", "boat"]
POINTS = [(186, 54), (128, 159), (244, 159)]  # the top of the mast, stern and bow
SHAPES: list[tuple[str, tuple[int, int, int], list[tuple[int, int]]]] = [
    ("land", (92, 96, 118), [(0, 142), (40, 112), (74, 126), (122, 98), (176, 130), (214, 142)]),
    ("land", (74, 84, 96), [(232, 142), (272, 118), (320, 108), (320, 142)]),
    ("boat", (252, 250, 244), [(190, 58), (240, 152), (190, 152)]),
    ("boat", (226, 92, 66), [(182, 68), (182, 152), (138, 152)]),
    ("boat", (104, 66, 44), [(128, 158), (244, 158), (226, 180), (146, 180)]),
    ("boat", (70, 46, 32), [(184, 52), (188, 52), (188, 158), (184, 158)]),
]


def scene() -> tuple[Image.Image, NDArray[np.uint8]]:
    """A boat before hills: the picture, and the class of each of its pixels."""
    rows = np.linspace(0, 1, HEIGHT)[:, None, None]
    sky = (1 - rows) * [88, 150, 212] + rows * [255, 226, 188]
    sea = (1 - rows) * [60, 148, 172] + rows * [16, 60, 98]
    waves = 14 * np.sin(rows * 150 + 3 * np.sin(np.linspace(0, 9, WIDTH))[None, :, None])
    horizon = np.arange(HEIGHT)[:, None, None] >= 142
    colours = np.where(horizon, sea + waves, sky) + np.zeros((1, WIDTH, 1))
    picture = Image.fromarray(colours.round().astype(np.uint8))
    mask = Image.fromarray((horizon[..., 0] + np.zeros((1, WIDTH))).astype(np.uint8))
    fine = picture.resize((WIDTH * FINER, HEIGHT * FINER))
    draw, codes = ImageDraw.Draw(fine), ImageDraw.Draw(mask)
    draw.ellipse([at * FINER for at in (34, 26, 78, 70)], fill=(255, 244, 196))
    for name, colour, corners in SHAPES:
        draw.polygon([(x * FINER, y * FINER) for x, y in corners], fill=colour)
        codes.polygon(corners, fill=CODES.index(name))
    smooth = fine.filter(ImageFilter.GaussianBlur(1)).resize((WIDTH, HEIGHT))
    return smooth, np.asarray(mask)


def loader() -> DataLoader:
    """The scene with its mask and points, as a training of 128 px has them."""
    picture, mask = scene()
    plan = DataBlock(
        blocks=(ImageBlock, MaskBlock(CODES), PointBlock),
        get_x=lambda item: picture,
        get_y=[lambda item: mask, lambda item: POINTS],
        n_inp=1,
        splitter=IndexSplitter([1]),
        item_tfms=Resize(160),
        batch_tfms=[
            *aug_transforms(size=128, min_scale=0.6, max_rotate=20, max_lighting=0.4),
            Normalize.from_stats(*imagenet_stats),
        ],
    )
    train: DataLoader = plan.dataloaders([0, 1], bs=1, seed=5, device="cpu", num_workers=0).train
    return train


def epochs(dl: DataLoader, count: int) -> list[tuple[torch.Tensor, ...]]:
    """The one sample as it is in each of the first epochs."""
    return [dl.batch_of([0], epoch) for epoch in range(count)]


def save(figure: object, name: str) -> None:
    """Write a figure as a PNG of few colours: small, and the same to the eye."""
    path = HERE / name
    figure.savefig(path, dpi=100, bbox_inches="tight")  # type: ignore[attr-defined]
    Image.open(path).convert("RGB").quantize(200).save(path, optimize=True)


def eight_epochs(dl: DataLoader) -> None:
    pictures = [shown_images(dl, x)[0] for x, _, _ in epochs(dl, 8)]
    titles = [f"epoch {epoch}" for epoch in range(8)]
    save(show_images(pictures, titles, ncols=4, figsize=(8, 4.3)), "epochs.png")


def targets(dl: DataLoader) -> None:
    batches = epochs(dl, 4)
    pictures = [shown_images(dl, x)[0] for x, _, _ in batches]
    figure = show_images(
        pictures, [f"epoch {epoch}" for epoch in range(4)], ncols=4, figsize=(8, 2.2)
    )
    for axes, (_, mask, points) in zip(figure.axes, batches, strict=True):
        axes.imshow(mask[0], cmap="viridis", vmin=0, vmax=3, alpha=0.5, interpolation="nearest")
        size = (mask.shape[1], mask.shape[2])
        x, y = in_pixels("points", points[0], size).numpy().T - 0.5
        axes.plot(x, y, "o", color=ORANGE, markeredgecolor="white", markersize=6)
        axes.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5))
    save(figure, "targets.png")


def stages(dl: DataLoader) -> None:
    picture, _ = scene()
    resize = Resize(160)
    fitted = picture.resize(resize.fitted((HEIGHT, WIDTH))[::-1], Image.Resampling.BILINEAR)
    draws = Draws(dl.seed, epoch=0, samples=np.array([0]), stream="item/Resize/0")
    steps = {
        "decoded, 320 x 240": np.asarray(picture),
        "fitted and kept, 213 x 160": np.asarray(fitted),
        "a window, 160 x 160": np.asarray(resize(fitted, draws)),
        "one pass, 128 x 128": shown_images(dl, dl.batch_of([0], epoch=0)[0])[0],
    }
    figure = show_images(list(steps.values()), list(steps), ncols=4, figsize=(9.6, 2.3))
    for axes in figure.axes:  # one scale for all
        axes.title.set(ha="left", x=0)
        axes.set(xlim=(-0.5, WIDTH - 0.5), ylim=(HEIGHT - 0.5, -0.5))
    save(figure, "stages.png")


def main() -> None:
    """Write all of them."""
    dl = loader()
    eight_epochs(dl)
    targets(dl)
    stages(dl)


if __name__ == "__main__":
    main()
