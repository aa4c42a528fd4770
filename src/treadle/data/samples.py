"""Some samples on their way to a batch, and the item transforms that they go through.

They are held by element, not by sample: what is drawn for them is drawn at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from treadle.data.addressed import addressed
from treadle.data.describe import describe, name_of
from treadle.data.draws import Draws
from treadle.data.foreign import Foreign
from treadle.data.resize import Resize
from treadle.data.targets import resized, windowed
from treadle.data.transforms import ItemTransform
from treadle.errors import DataError

__all__ = ["Each", "ItemStage", "Joint", "Placed", "Samples", "through"]

PIXELS = ("image", "mask")


@dataclass(slots=True)
class Samples:
    """Samples of a data set; `columns[place]` holds element `place` of each: a list, or an int64
    array where all are whole numbers.

    Of the kinds "image" and "mask" they are uint8 arrays (H, W, 3) or (H, W), of "points" and
    "boxes" float32 arrays in pixels of `frames`, (height, width) of each sample. Elements of no
    kind are whatever the data set gave. The first `n_inp` elements are inputs. `name` tells of an
    index what a person knows the sample by.
    """

    indices: NDArray[np.int64]
    columns: list[Any]
    kinds: list[str | None]
    frames: list[tuple[int, int]]
    n_inp: int
    name: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.indices)

    def names(self) -> list[str]:
        """What a person knows each sample by."""
        return [self.name(index) for index in self.indices.tolist()]


class ItemStage(ABC):
    """An item transform in its place: `name` in messages, `stream` of its random numbers."""

    transform: Any

    def __init__(self, transform: Any, stream: str) -> None:
        self.transform, self.stream = transform, stream

    @property
    def name(self) -> str:
        """How messages call it."""
        is_object = isinstance(self.transform, ItemTransform | Foreign)
        return repr(self.transform) if is_object else name_of(self.transform)

    @abstractmethod
    def run(self, samples: Samples, draws: Draws | None) -> None:
        """Change `samples`; `draws` are theirs, or None in validation."""

    def draws(self, draws: Draws | None) -> Draws | None:
        """Its own numbers of `draws`."""
        return draws and draws.named(self.stream)


class Placed(ItemStage):
    """`Resize`: its second part alone where the samples come fitted, as the first stage's do."""

    transform: Resize

    def __init__(self, transform: Resize, stream: str, fitted: bool) -> None:
        super().__init__(transform, stream)
        self.fitted = fitted

    def run(self, samples: Samples, draws: Draws | None) -> None:
        if not self.fitted:
            fit(self.transform, samples)
        own = self.draws(draws)
        moved = [place for place, kind in enumerate(samples.kinds) if kind is not None]
        size, pad = self.transform.size, self.transform.pad_mode
        for place in moved:
            kind, column = str(samples.kinds[place]), samples.columns[place]
            frames = np.array(_frames_of(place, samples)).reshape(-1, 2)
            corners = self.transform.windows(frames, own)
            pairs = zip(column, corners.tolist(), strict=True)
            if kind in PIXELS and (corners >= 0).all():  # views: nothing is copied
                height, width = size
                made = [v[top : top + height, left : left + width] for v, (top, left) in pairs]
            else:
                made = [windowed(kind, v, (top, left, *size), pad) for v, (top, left) in pairs]
            samples.columns[place] = made
        samples.frames = [size] * len(samples)


def _frames_of(place: int, samples: Samples) -> Sequence[tuple[int, int]]:
    """(height, width) of the pixels of an element, or of what its places are measured in."""
    column = samples.columns[place]
    if samples.kinds[place] not in PIXELS:
        return samples.frames
    if isinstance(column[0], torch.Tensor):
        raise DataError(
            f"Resize was given {describe(column[0])}, which an item transform before it has made, "
            "and works on pictures of uint8. Put Resize first."
        )
    return [value.shape[:2] for value in column]


def fit(resize: Resize, samples: Samples) -> None:
    """The first part of `resize`, of all elements that move."""
    for place, kind in enumerate(samples.kinds):
        if kind is None:
            continue
        pairs = zip(samples.columns[place], _frames_of(place, samples), strict=True)
        samples.columns[place] = [
            resized(kind, value, frame, resize.fitted(frame)) for value, frame in pairs
        ]
    samples.frames = [resize.fitted(frame) for frame in samples.frames]


class Each(ItemStage):
    """A transform of one image at a time: of the inputs, never of targets."""

    def run(self, samples: Samples, draws: Draws | None) -> None:
        own = self.draws(draws)
        for place in range(samples.n_inp):
            column = samples.columns[place]
            image = samples.kinds[place] == "image"
            made = [
                self._one(_as_picture(value) if image else value, own, at, samples)
                for at, value in enumerate(column)
            ]
            if image:
                made = [_as_pixels(value) for value in made]
                if not _is_image(made[0]):
                    samples.kinds[place] = None
            samples.columns[place] = made
        samples.frames = _frames_now(samples)

    def _one(self, value: Any, draws: Draws | None, at: int, samples: Samples) -> Any:
        try:
            if isinstance(self.transform, ItemTransform):
                return self.transform(value, draws and draws.at(at))
            with addressed(draws and draws.at(at)):  # what a function of the user's draws
                return self.transform(value)
        except Exception as error:
            raise failed(self, samples, at, value, error) from error


class Joint(ItemStage):
    """A transform of torchvision: all elements of a sample at once."""

    transform: Foreign

    def run(self, samples: Samples, draws: Draws | None) -> None:
        own = self.draws(draws)
        rows = list(zip(*samples.columns, strict=True))
        made = []
        for at, row in enumerate(rows):
            frame: list[Any] = [samples.frames[at] if samples.frames else None] * len(row)
            try:
                elements, _ = self.transform.run_item(
                    list(row), samples.kinds, frame, own and own.at(at)
                )
            except Exception as error:
                raise failed(self, samples, at, row[0], error) from error
            made.append(elements)
        samples.columns = [list(column) for column in zip(*made, strict=True)]
        samples.frames = _frames_now(samples)


def through(
    stages: Sequence[ItemStage], samples: Samples, draws: Draws | None
) -> Iterator[ItemStage]:
    """Run `samples` through `stages`, handing out each stage when it has been run."""
    for stage in stages:
        stage.run(samples, draws)
        yield stage


def failed(stage: ItemStage, samples: Samples, at: int, value: Any, error: Exception) -> DataError:
    """What is told of a transform that failed on the sample at place `at`."""
    index = int(samples.indices[at])
    return DataError(
        f"The item transform {stage.name} failed on sample {index} ({samples.name(index)}), given "
        f"{describe(value)}: {type(error).__name__}: {error}"
    )


def _as_pixels(value: Any) -> Any:
    if isinstance(value, Image.Image) and value.mode in ("RGB", "L"):
        return np.asarray(value)
    return value


def _as_picture(value: Any) -> Any:
    return Image.fromarray(value) if isinstance(value, np.ndarray) else value


def _is_image(value: Any) -> bool:
    """Whether a value is uint8 pixels, or a tensor (C, H, W), as images are."""
    if isinstance(value, torch.Tensor):
        return value.ndim == 3
    right = isinstance(value, np.ndarray) and value.dtype == np.uint8
    return right and (value.ndim == 2 or (value.ndim == 3 and value.shape[2] == 3))


def _frames_now(samples: Samples) -> list[tuple[int, int]]:
    for kind, column in zip(samples.kinds, samples.columns, strict=True):
        if kind in PIXELS:
            return [frame_of(value) for value in column]
    return samples.frames


def frame_of(value: Any) -> tuple[int, int]:
    """(height, width) of pixels (H, W, 3) or (H, W), or of a tensor (C, H, W)."""
    shape = value.shape[-2:] if isinstance(value, torch.Tensor) else value.shape[:2]
    return int(shape[0]), int(shape[1])
