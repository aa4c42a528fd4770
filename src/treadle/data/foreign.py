"""Transforms of torchvision (v2 and v1) and other modules, in their place among Treadle's.

The elements of a sample go through one call together, so that masks, points and boxes move with
their image: as `torchvision.tv_tensors` (Image, Mask, KeyPoints, BoundingBoxes), or, where a
transform wants it (v1, ToTensor), as a PIL image. Random numbers have the sample's address (see
`addressed`): they do not depend on the batch, the worker or the order. In validation nothing is
random (see `resting`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from treadle.data.addressed import addressed
from treadle.data.decode import Frame
from treadle.data.describe import describe
from treadle.data.draws import Draws
from treadle.data.resting import at_rest, leaves, name_in_torchvision, one_line, refuse, version
from treadle.data.targets import cut, in_pixels, normalised, resized
from treadle.data.transforms import BatchTransform, ItemTransform
from treadle.errors import UsageError
from treadle.registry import register

__all__ = ["Foreign", "is_foreign"]

_PIXELS = ("image", "mask")
_COLOURS = set(
    "ColorJitter ConvertImageDtype GaussianBlur Grayscale Identity Normalize PILToTensor "
    "RandomAdjustSharpness RandomAutocontrast RandomEqualize RandomErasing RandomGrayscale "
    "RandomInvert RandomPosterize RandomSolarize ToDtype ToImage ToPILImage ToPureTensor "
    "ToTensor".split()
)
"""Transforms that leave every pixel in its place: targets need not go along."""
_EACH_PIXEL = {"ConvertImageDtype", "Identity", "Normalize", "ToDtype", "ToImage", "ToPureTensor"}
"""Transforms that do the same with a batch as with its samples one by one."""


def is_foreign(transform: Any) -> bool:
    """Is it torchvision's, or a module of torch? Neither Treadle's own nor a plain function is.

    >>> is_foreign(nn.Identity()), is_foreign(str.upper)
    (True, False)
    """
    if isinstance(transform, ItemTransform | BatchTransform | type):
        return False
    return isinstance(transform, nn.Module) or version(transform) > 0


@register
class Foreign:
    """A transform of torchvision, a module, or any function that draws from torch.

    `resting` is what is run of it in validation (see `resting.at_rest`); None is nothing. Raises
    `UsageError` for what cannot be run: CutMix and MixUp, whatever draws from Python's or NumPy's
    global generators, and what says nothing of its meaning in validation.

    >>> from torchvision.transforms import v2
    >>> crop = Foreign(v2.RandomCrop(2))
    >>> (image, points), frames = crop.run_item(
    ...     [np.zeros((4, 4, 3), np.uint8), np.array([[2.0, 3.0]], np.float32)],
    ...     ["image", "points"], [(4, 4), (4, 4)], draws=None)
    >>> image.shape, points.tolist(), frames
    ((2, 2, 3), [[1.0, 2.0]], [(2, 2), (2, 2)])
    """

    def __init__(self, transform: Callable[..., Any]) -> None:
        refuse(transform)
        self.transform, self.resting = transform, at_rest(transform)
        self._leaves = list(leaves(transform))
        self._names = [name_in_torchvision(leaf) for leaf in self._leaves]
        self._each_pixel = _EACH_PIXEL.issuperset(self._names)
        self._joint = all(version(leaf) == 2 for leaf in self._leaves)
        old = any(version(leaf) == 1 for leaf in self._leaves)
        self._as_pil = old or not {"ToTensor", "PILToTensor"}.isdisjoint(self._names)

    def __repr__(self) -> str:
        return one_line(self.transform)

    def run_item(
        self,
        elements: Sequence[Any],
        kinds: Sequence[str | None],
        frames: Sequence[Frame | None],
        draws: Draws | None,
    ) -> tuple[list[Any], list[Frame | None]]:
        """One sample's elements through one call; `draws` are its own, or None in validation.

        Images are uint8 arrays (H, W, 3) or (H, W), or tensors (C, H, W); masks arrays or tensors
        (H, W); points and boxes float32 arrays in pixels of their frame. Elements of kind None go
        by. Returns the elements and the frames (height, width) that they have now. An image that
        the transform makes floats of comes back, and stays, a tensor (C, H, W).
        """
        elements, frames = list(elements), list(frames)
        transform, places = self._what(kinds, draws)
        if transform is None or not places:
            return elements, frames
        moving = [str(kinds[place]) for place in places]
        guides = _guides(moving, [frames[place] for place in places])
        given = [
            self._given(kind, elements[place], frames[place], _size(elements[places[guide]]))
            for kind, place, guide in zip(moving, places, guides, strict=True)
        ]
        made, sizes = self._called(transform, moving, given, guides, draws)
        for place, kind, value, size in zip(places, moving, made, sizes, strict=True):
            elements[place], frames[place] = _array(kind, value), size
        return elements, frames

    def run_batch(
        self, tensors: Sequence[torch.Tensor], kinds: Sequence[str | None], draws: Draws | None
    ) -> list[torch.Tensor]:
        """A batch, sample by sample; `draws` are of all B samples, or None in validation.

        Images are (B, C, H, W), masks (B, H, W) or (B, 1, H, W), points (B, N, 2) and boxes
        (B, N, 4) normalised. A sample's result depends on the sample and its address alone.
        """
        out = list(tensors)
        transform, places = self._what(kinds, draws)
        if transform is None or not places:
            return out
        moving = [str(kinds[place]) for place in places]
        columns = [out[place] for place in places]
        if self._each_pixel:
            made = self._sample(transform, moving, columns, None)
        else:
            rows = [
                self._sample(transform, moving, row, draws and draws.at(at))
                for at, row in enumerate(zip(*columns, strict=True))
            ]
            made = [self._stacked(column) for column in zip(*rows, strict=True)]
        for place, tensor in zip(places, made, strict=True):
            out[place] = tensor
        return out

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) as they are to be shown: with every Normalize undone."""
        for leaf, name in zip(reversed(self._leaves), reversed(self._names), strict=True):
            if name == "Normalize":
                mean, std = (
                    torch.as_tensor(value, dtype=x.dtype, device=x.device).view(-1, 1, 1)
                    for value in (leaf.mean, leaf.std)  # type: ignore[attr-defined]
                )
                x = x * std + mean
        return x

    def _what(
        self, kinds: Sequence[str | None], draws: Draws | None
    ) -> tuple[Callable[..., Any] | None, list[int]]:
        """What to run, and the places of the elements that go through it."""
        moving = [
            place
            for place, kind in enumerate(kinds)
            if kind in _PIXELS or (kind is not None and not self._each_pixel)
        ]
        transform = self.resting if draws is None else self.transform
        images = [place for place in moving if kinds[place] == "image"]
        if self._joint or transform is None or images == moving:
            return transform, moving
        for leaf, name in zip(self._leaves, self._names, strict=True):
            if name not in _COLOURS:
                targets = " and ".join(sorted({str(kinds[p]) for p in moving} - {"image"}))
                raise UsageError(
                    f"{one_line(leaf)} takes an image alone, and this sample also has {targets}, "
                    "which would stay behind if it moves pixels. Take its namesake in "
                    "torchvision.transforms.v2, or, if it moves none, say so by "
                    "v2.Lambda(transform, tv_tensors.Image)."
                )
        return transform, images

    def _sample(
        self,
        transform: Callable[..., Any],
        kinds: Sequence[str],
        tensors: Sequence[torch.Tensor],
        draws: Draws | None,
    ) -> list[torch.Tensor]:
        """Tensors of one sample as they are in a batch, transformed."""
        guides = _guides(kinds, [None] * len(kinds))
        given = [
            in_pixels(kind, tensor, _size(tensors[guide]))
            for kind, tensor, guide in zip(kinds, tensors, guides, strict=True)
        ]
        made, sizes = self._called(transform, kinds, given, guides, draws)
        return [normalised(*each) for each in zip(kinds, made, sizes, strict=True)]

    def _stacked(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        shapes = sorted({tuple(tensor.shape) for tensor in tensors})
        if len(shapes) > 1:
            raise UsageError(
                f"{self!r} made samples of different shapes, from {shapes[0]} to {shapes[-1]}, "
                "which make no batch. Bring them to one size after it."
            )
        return torch.stack(list(tensors))

    def _given(self, kind: str, value: Any, frame: Frame | None, canvas: Frame) -> Any:
        """An item's element as a tensor, a copy, or as a PIL image."""
        if isinstance(value, torch.Tensor):
            return value
        if kind not in _PIXELS:
            assert frame is not None
            return torch.from_numpy(resized(kind, value, frame, canvas))
        if kind == "image" and self._as_pil:
            return Image.fromarray(value)
        pixels = torch.from_numpy(np.array(value))  # what comes from a cache must not be changed
        if kind == "mask":
            return pixels
        return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]

    def _called(
        self,
        transform: Callable[..., Any],
        kinds: Sequence[str],
        given: Sequence[Any],
        guides: Sequence[int],
        draws: Draws | None,
    ) -> tuple[list[torch.Tensor], list[Frame]]:
        """What `transform` makes of tensors or PIL images, and the frames that they then have."""
        canvases = [_size(given[guide]) for guide in guides]
        wrapped = [_wrapped(*each) for each in zip(kinds, given, canvases, strict=True)]
        made: list[Any] = []
        for group in [wrapped] if self._joint else [[value] for value in wrapped]:
            alone = len(group) == 1
            with torch.no_grad(), addressed(draws):
                result = transform(group[0] if alone else tuple(group))
            made += [result] if alone or not isinstance(result, list | tuple) else result
        if len(made) != len(given):
            raise UsageError(f"{self!r} made {len(made)} elements of a sample's {len(given)}.")
        tensors = [self._tensor(*each) for each in zip(kinds, made, given, strict=True)]
        sizes = [_size(tensors[guide]) for guide in guides]
        for place, (kind, (height, width)) in enumerate(zip(kinds, sizes, strict=True)):
            if kind == "boxes":
                tensors[place] = cut(tensors[place], (0, 0, width, height))
        return tensors, sizes

    def _tensor(self, kind: str, made: Any, given: Any) -> torch.Tensor:
        """A plain tensor of what was made of an element; what was NaN is so again."""
        if isinstance(made, Image.Image):
            pixels = torch.from_numpy(np.array(made))
            return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]
        if isinstance(made, torch.Tensor) and kind in _PIXELS:
            return made.as_subclass(torch.Tensor)
        if isinstance(made, torch.Tensor) and made.shape == given.shape:
            missing = given.isnan().any(-1, keepdim=True)
            return made.as_subclass(torch.Tensor).masked_fill(missing, torch.nan)
        raise UsageError(
            f"{self!r} made {describe(made)} of {describe(given)}; expected one {kind} again, in "
            "a tensor."
        )


def _guides(kinds: Sequence[str], frames: Sequence[Frame | None]) -> list[int]:
    """For each element the place of the pixels that it lies on: itself, or those of its frame."""
    guides = []
    for place, (kind, frame) in enumerate(zip(kinds, frames, strict=True)):
        own = [
            other
            for other, what in enumerate(kinds)
            if (other == place if kind in _PIXELS else what in _PIXELS and frames[other] == frame)
        ]
        if not own:
            raise UsageError(
                f"Element {place} of a sample are {kind}, and no image or mask of the sample has "
                f"their frame, {frame}."
            )
        guides.append(own[0])
    return guides


def _size(pixels: Any) -> Frame:
    """(height, width) of an array, a tensor or a PIL image."""
    if isinstance(pixels, Image.Image):
        return pixels.height, pixels.width
    height, width = pixels.shape[-2:] if isinstance(pixels, torch.Tensor) else pixels.shape[:2]
    return height, width


def _array(kind: str, value: torch.Tensor) -> Any:
    """An item's element as it is between item transforms; floats stay a tensor."""
    if kind not in _PIXELS:
        return value.numpy()
    if value.dtype != torch.uint8 or value.ndim > 3:
        return value
    if value.ndim == 3:
        value = value.permute(1, 2, 0) if len(value) > 1 else value[0]
    return np.ascontiguousarray(value.numpy())


def _wrapped(kind: str, value: Any, canvas: Frame) -> Any:
    """A tensor as torchvision knows it; PIL images are known as they are."""
    from torchvision import tv_tensors

    if isinstance(value, Image.Image):
        return value
    if kind in _PIXELS:
        return tv_tensors.Image(value) if kind == "image" else tv_tensors.Mask(value)
    value = value.masked_fill(value.isnan().any(-1, keepdim=True), 0)  # indices are made of them
    if kind == "points":
        return _points_class()(value, canvas_size=canvas)
    return tv_tensors.BoundingBoxes(value, format="XYXY", canvas_size=canvas)


@lru_cache(maxsize=1)
def _points_class() -> Any:
    """Key points measured from the edges of the frame, as boxes are.

    torchvision mirrors key points, and bends them by ElasticTransform, as if they were measured
    from the middle of the first pixel, but resizes, turns and tilts them as if from its edge.
    """
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as F

    class Points(tv_tensors.KeyPoints):  # type: ignore[misc]
        pass

    def mirrored(points: Any, axis: int) -> Any:
        out = points.as_subclass(torch.Tensor).clone()
        out[..., axis] = points.canvas_size[1 - axis] - out[..., axis]
        return tv_tensors.wrap(out, like=points)

    def bent(points: Any, displacement: torch.Tensor, **rest: Any) -> Any:
        plain = points.as_subclass(torch.Tensor)
        height, width = points.canvas_size
        pixel = plain.trunc().clamp(plain.new_zeros(2), plain.new_tensor([width - 1, height - 1]))
        out = F.elastic_keypoints(plain, points.canvas_size, displacement) + (plain - pixel)
        return tv_tensors.wrap(out, like=points)

    F.register_kernel(F.horizontal_flip, Points)(partial(mirrored, axis=0))
    F.register_kernel(F.vertical_flip, Points)(partial(mirrored, axis=1))
    F.register_kernel(F.elastic, Points)(bent)
    return Points
