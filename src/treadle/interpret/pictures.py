"""Samples as pictures: as the model got them, or from their files."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from treadle.data import DataLoader, shown_images
from treadle.errors import UsageError


def opened(items: Sequence[Any], places: Sequence[int]) -> list[Image.Image]:
    """The images that `items` are, at these places. Raises `UsageError` where one is none."""
    images = []
    for place in places:
        image = opened_image(items[place])
        if image is None:
            raise UsageError(f"sample {place} is no image that can be read: {items[place]!r}.")
        images.append(image)
    return images


def pictures_of(loader: Any, x: Tensor) -> list[NDArray[Any]]:
    """Inputs (B, 1 or 3, H, W), or (B, H, W), of a batch of `loader` as images.

    How other loaders than Treadle's have normalised, nobody knows: what does not lie in [0, 1] is
    stretched to it.
    """
    if isinstance(loader, DataLoader):
        return list(shown_images(loader, x))
    images = x.detach().cpu()
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UsageError(
            f"inputs of shape {tuple(x.shape)} are no pictures; expected (B, 1 or 3, H, W). "
            "top_losses() says which samples they are."
        )
    if images.dtype == torch.uint8:
        return [image.permute(1, 2, 0).numpy() for image in images]
    images = images.float()
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        images = (images - low) / max(high - low, 1e-12)
    return [image.permute(1, 2, 0).numpy() for image in images]


def thumbnail(item: Any, size: int = 128) -> bytes | None:
    """A PNG of at most `size` pixels a side, in 256 colours to keep it small.

    `item` is a path, a Pillow image, or an array or CPU tensor of bytes, (H, W) or (H, W, 3).
    None for anything else, and for a file that is no readable image: a report goes without.
    """
    image = opened_image(item)
    if image is None:
        return None
    image = image.convert("RGB")
    image.thumbnail((size, size))
    file = io.BytesIO()
    image.quantize(256).save(file, format="PNG", optimize=True)
    return file.getvalue()


def opened_image(item: Any) -> Image.Image | None:
    """A path, a Pillow image, an array or a tensor of bytes as a Pillow image; None if it cannot
    be."""
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
