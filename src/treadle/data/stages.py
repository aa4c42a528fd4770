"""The batch transforms in their places: neighbours that can be are one stage.

Neighbouring geometric transforms are one matrix a sample and one sampling, neighbouring lighting
transforms one slope and offset a sample and one pass. On the CPU a sampling, a change of light and
a normalisation that follow one another are one compiled pass (`fused`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from treadle.data.addressed import addressed
from treadle.data.decode import Pixels
from treadle.data.describe import describe, name_of
from treadle.data.draws import Draws
from treadle.data.foreign import Foreign
from treadle.data.fused import Pass
from treadle.data.geometry import Geometric
from treadle.data.lighting import Lighting, relight
from treadle.data.normalize import Normalize
from treadle.data.sampling import Sampling, resample
from treadle.data.targets import moved
from treadle.data.transforms import BatchTransform

__all__ = ["AsFloat", "BatchStage", "FirstPass", "Foreigner", "Moved", "Relit", "Single", "through"]

Elements = list[torch.Tensor]
Kinds = Sequence[str | None]


class BatchStage(ABC):
    """One step of a batch: `name` in messages, `run` on the images alone."""

    name: str

    @abstractmethod
    def run(self, x: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        """Images (B, C, H, W) after the stage."""

    def over(self, batch: Elements, kinds: Kinds, n_inp: int, draws: Draws | None) -> Elements:
        """All elements of a batch after the stage: the inputs are changed, targets stay."""
        return [*(self.run(x, draws) for x in batch[:n_inp]), *batch[n_inp:]]


class AsFloat(BatchStage):
    """uint8 images, targets too, to floats in [0, 1]."""

    name = "uint8 to float in [0, 1]"

    def run(self, x: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        return x.float().div_(255) if x.dtype == torch.uint8 else x

    def over(self, batch: Elements, kinds: Kinds, n_inp: int, draws: Draws | None) -> Elements:
        images = (kind == "image" or at < n_inp for at, kind in enumerate(kinds))
        return [self.run(x, draws) if image else x for x, image in zip(batch, images, strict=True)]


class Single(BatchStage):
    """A transform that stands by itself, or a function of the images."""

    def __init__(self, transform: Callable[..., Any], stream: str) -> None:
        self.transform, self.stream = transform, stream
        ours = isinstance(transform, BatchTransform)
        self.name = repr(transform) if ours else name_of(transform)

    def run(self, x: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        if isinstance(self.transform, BatchTransform):
            return self.transform(x, draws and draws.named(self.stream))
        # what a function of the user's draws for a batch, it draws at its first sample's address
        with addressed(draws and draws.named(self.stream).at(0)):
            made: torch.Tensor = self.transform(x)
        return made


class Foreigner(BatchStage):
    """A transform of torchvision: all elements of a sample at once."""

    def __init__(self, transform: Foreign, stream: str) -> None:
        self.transform, self.stream, self.name = transform, stream, repr(transform)

    def run(self, x: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        return self.over([x], ["image"], 1, draws)[0]

    def over(self, batch: Elements, kinds: Kinds, n_inp: int, draws: Draws | None) -> Elements:
        own = draws and draws.named(self.stream)
        given = [kind or ("image" if at < n_inp else None) for at, kind in enumerate(kinds)]
        return self.transform.run_batch(batch, given, own)


class Moved(BatchStage):
    """Neighbouring geometric transforms; targets that are places in the image move along."""

    def __init__(self, members: Sequence[tuple[Geometric, str]]) -> None:
        self.members, self.how = members, members[0][0].sampling
        self.name = " + ".join(type(transform).__name__ for transform, _ in members)

    def matrices(
        self, draws: Draws | None, size: tuple[int, int]
    ) -> tuple[NDArray[np.float64], tuple[int, int]]:
        """The product of all their matrices for a frame of `size`, and the size that comes out."""
        matrices = np.eye(3)[None]
        for transform, stream in self.members:
            matrices = matrices @ transform.matrices(draws and draws.named(stream), size)
            size = transform.size or size
        return matrices, size

    def run(self, x: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        return resample(x, *self.matrices(draws, _size(x)), self.how)

    def over(self, batch: Elements, kinds: Kinds, n_inp: int, draws: Draws | None) -> Elements:
        before = _size(batch[0])
        matrices, after = self.matrices(draws, before)
        given = [kind or ("image" if at < n_inp else None) for at, kind in enumerate(kinds)]
        return [
            x if kind is None else moved(kind, x, matrices, before, after, self.how)
            for kind, x in zip(given, batch, strict=True)
        ]


class Relit(BatchStage):
    """Neighbouring lighting transforms."""

    def __init__(self, members: Sequence[tuple[Lighting, str]]) -> None:
        self.members = members
        self.name = " + ".join(type(transform).__name__ for transform, _ in members)

    def line(self, draws: Draws) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Slope and offset of each sample, of all members together."""
        slope, offset = np.ones(len(draws)), np.zeros(len(draws))
        for transform, stream in self.members:
            a, b = transform.drawn(draws.named(stream))
            slope, offset = a * slope, a * offset + b
        return slope, offset

    def run(self, x: torch.Tensor, draws: Draws | None) -> torch.Tensor:
        return x if draws is None else relight(x, *self.line(draws))


def through(
    stages: Sequence[BatchStage], batch: Elements, kinds: Kinds, n_inp: int, draws: Draws | None
) -> Iterator[tuple[BatchStage, Elements]]:
    """Each of `stages`, and what it makes of the batch that the one before it left."""
    for stage in stages:
        try:
            batch = stage.over(batch, kinds, n_inp, draws)
        except Exception as error:
            given = ", ".join(map(describe, batch))
            error.add_note(f"In the batch transform {stage.name}, given {given}")
            raise
        yield stage, batch


class FirstPass:
    """The stages at the head of a pipeline that can be one compiled pass, and those after it."""

    def __init__(self, stages: Sequence[BatchStage]) -> None:
        rest = list(stages[1:])  # the first makes floats
        self.moved = self._next(rest, Moved)
        self.relit = self._next(rest, Relit)
        last = rest[0] if rest and isinstance(rest[0], Single) else None
        self.normalize = last.transform if last and isinstance(last.transform, Normalize) else None
        self.rest = rest[1:] if self.normalize else rest

    @staticmethod
    def _next(rest: list[BatchStage], kind: Any) -> Any:
        return rest.pop(0) if rest and isinstance(rest[0], kind) else None

    def takes(self, picture: Pixels, size: tuple[int, int]) -> bool:
        """Whether the pass can be made of pictures like this: of `size`, grey or RGB, bilinear."""
        channels = picture.shape[2] if picture.ndim == 3 else 1
        bilinear = self.moved is None or self.moved.how.mode == "bilinear"
        fits = channels in (1, 3)
        if self.normalize is not None:
            fits = fits and len(self.normalize.mean) == channels
        return fits and bilinear and picture.shape[:2] == size

    def prepared(self, size: tuple[int, int], draws: Draws | None) -> Pass:
        """What is to be done to pictures of `size`."""
        matrices, after = (
            self.moved.matrices(draws, size) if self.moved else (np.eye(3)[None], size)
        )
        light = None if draws is None or self.relit is None else self.relit.line(draws)
        mean, std = (self.normalize.mean, self.normalize.std) if self.normalize else ([0.0], [1.0])
        how = self.moved.how if self.moved else Sampling()
        return Pass(matrices, after, how, light, mean, std)

    def move(
        self, element: torch.Tensor, kind: str | None, before: tuple[int, int], done: Pass
    ) -> torch.Tensor:
        """A target, gone along with the pictures of `done`."""
        if kind is None or self.moved is None:
            return element
        return moved(kind, element, done.matrices, before, done.size, done.how)


def _size(x: torch.Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
