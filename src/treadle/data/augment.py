"""The usual augmentations, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from treadle.data.geometry import (
    Dihedral,
    Flip,
    Geometric,
    RandomResizedCropGPU,
    ResizeBatch,
    Rotate,
    Warp,
    Zoom,
)
from treadle.data.lighting import Brightness, Contrast, Lighting
from treadle.data.transforms import Size
from treadle.errors import UsageError

__all__ = ["aug_transforms"]

Transform = Callable[..., Any]


def aug_transforms(
    mult: float = 1.0,
    do_flip: bool = True,
    flip_vert: bool = False,
    max_rotate: float = 10.0,
    min_zoom: float = 1.0,
    max_zoom: float = 1.1,
    max_lighting: float = 0.2,
    max_warp: float = 0.2,
    p_affine: float = 0.75,
    p_lighting: float = 0.75,
    xtra_tfms: Transform | Iterable[Transform] | None = None,
    size: Size | None = None,
    mode: str = "bilinear",
    pad_mode: str = "reflection",
    align_corners: bool = True,
    min_scale: float = 1.0,
) -> list[Transform]:
    """Flip, rotate, zoom, warp and lighting for `batch_tfms`, as a list; meanings as in fastai.

    `max_rotate` is in degrees; `mult` multiplies `max_rotate`, `max_lighting` and `max_warp`;
    `flip_vert` takes all eight symmetries of the square. `p_affine` and `p_lighting` are the
    probabilities of each geometric and each lighting transform. With `size` the batch leaves at
    that size: a random square part of at least `min_scale` of the area if that is below 1, the
    whole otherwise. Validation batches are only resized. `mode`, `pad_mode` and `align_corners`
    are those of `torch.nn.functional.grid_sample`.

    `xtra_tfms` are placed with their kind: geometric ones, then lighting, then others.

    >>> [type(t).__name__ for t in aug_transforms(size=128, min_scale=0.5, max_warp=0)]
    ['RandomResizedCropGPU', 'Flip', 'Rotate', 'Zoom', 'Brightness', 'Contrast']
    """
    how: dict[str, Any] = {"mode": mode, "pad_mode": pad_mode, "align_corners": align_corners}
    tfms: list[Transform] = []
    if min_scale != 1.0:
        if size is None:
            raise UsageError(f"aug_transforms(min_scale={min_scale!r}) also needs size=.")
        tfms.append(RandomResizedCropGPU(size, min_scale=min_scale, ratio=(1, 1), **how))
    elif size is not None:
        tfms.append(ResizeBatch(size, **how))
    if do_flip:
        tfms.append(Dihedral(p=0.5, **how) if flip_vert else Flip(p=0.5, **how))
    if warp := max_warp * mult:
        tfms.append(Warp(warp, p=p_affine, **how))
    if rotate := max_rotate * mult:
        tfms.append(Rotate(rotate, p=p_affine, **how))
    if min_zoom < 1 or max_zoom > 1:
        tfms.append(Zoom(min_zoom, max_zoom, p=p_affine, **how))
    if lighting := max_lighting * mult:
        tfms += [Brightness(lighting, p=p_lighting), Contrast(lighting, p=p_lighting)]
    extra = [xtra_tfms] if callable(xtra_tfms) else list(xtra_tfms or ())
    return sorted(tfms + extra, key=_kind)


def _kind(transform: Transform) -> int:
    return 0 if isinstance(transform, Geometric) else 1 if isinstance(transform, Lighting) else 2
