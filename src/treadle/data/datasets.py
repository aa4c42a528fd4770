"""Items to samples: a tuple of one element a block, inputs first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from treadle.data.blocks import Block

__all__ = ["Dataset", "Datasets"]

Getter = Callable[[Any], Any]


@dataclass(frozen=True)
class Dataset:
    """`items`, and how each becomes a sample. `dataset[i]` reads and decodes item `i`.

    `getters` and `blocks` are one a sample's element; the first `n_inp` elements are inputs.
    `part` is "training", "validation" or "test".
    """

    items: Sequence[Any]
    getters: tuple[Getter, ...]
    blocks: tuple[Block, ...]
    n_inp: int = 1
    part: str = "training"

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(
            block.encode(self.value(index, place)) for place, block in enumerate(self.blocks)
        )

    def value(self, index: int, place: int) -> Any:
        """What the getter of element `place` returns for item `index`."""
        item = self.items[index]
        with _noting(f"in {self.getter_name(place)} for the {self.part} item {index}: {item}"):
            return self.getters[place](item)

    def getter_name(self, place: int) -> str:
        """ "get_x" or "get_y", numbered where there are several."""
        name, first, last = ("get_x", 0, self.n_inp)
        if place >= self.n_inp:
            name, first, last = ("get_y", self.n_inp, len(self.getters))
        return name if last - first == 1 else f"{name}[{place - first}]"

    @property
    def vocab(self) -> list[Any] | None:
        """The classes of the first target that has any."""
        return next((b.vocab for b in self.blocks[self.n_inp :] if b.vocab is not None), None)

    @property
    def loss_func(self) -> Callable[..., Any] | None:
        """The loss of the first target, or None."""
        targets = self.blocks[self.n_inp :]
        return targets[0].loss_func if targets else None

    def of(self, items: Sequence[Any], with_labels: bool) -> Dataset:
        """The same for other items; without labels only the inputs of a sample remain."""
        keep = len(self.blocks) if with_labels else self.n_inp
        return Dataset(items, self.getters[:keep], self.blocks[:keep], self.n_inp, "test")


@dataclass(frozen=True)
class Datasets:
    """The two parts of a source."""

    train: Dataset
    valid: Dataset

    @property
    def vocab(self) -> list[Any] | None:
        """The classes of the target, or None."""
        return self.train.vocab

    @property
    def n_inp(self) -> int:
        """How many elements of a sample are inputs."""
        return self.train.n_inp


@contextmanager
def _noting(note: str) -> Iterator[None]:
    """Let an exception through, with `note` added: whoever wrote the getter knows its type."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise
