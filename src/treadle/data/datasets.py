"""Items to samples: a tuple of one element a block, inputs first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from treadle.data.blocks import Block
from treadle.data.describe import shortened
from treadle.data.table import as_items

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
        return tuple(self.element(index, place) for place in range(len(self.blocks)))

    def element(self, index: int, place: int) -> Any:
        """Element `place` of sample `index`: what its block makes of the getter's value."""
        value = self.value(index, place)
        try:
            return self.blocks[place].encode(value)
        except Exception as error:
            error.add_note(f"in {type(self.blocks[place]).__name__} for {self.named(index)}")
            raise

    def value(self, index: int, place: int) -> Any:
        """What the getter of element `place` returns for item `index`."""
        try:
            return self.getters[place](self.items[index])
        except Exception as error:
            error.add_note(f"in {self.getter_name(place)} for {self.named(index)}")
            raise

    def named(self, index: int) -> str:
        """How messages call item `index`."""
        return f"the {self.part} item {index}: {shortened(self.items[index])}"

    def getter_name(self, place: int) -> str:
        """ "get_x" or "get_y", numbered where there are several."""
        name, first, last = ("get_x", 0, self.n_inp)
        if place >= self.n_inp:
            name, first, last = ("get_y", self.n_inp, len(self.getters))
        return name if last - first == 1 else f"{name}[{place - first}]"

    @property
    def targets(self) -> tuple[Block, ...]:
        """The blocks of the targets."""
        return self.blocks[self.n_inp :]

    @property
    def vocab(self) -> list[Any] | None:
        """The classes of the target; a list of such lists where several targets have classes."""
        vocabs = [block.vocab for block in self.targets if block.vocab is not None]
        return vocabs if len(vocabs) > 1 else next(iter(vocabs), None)

    @property
    def n_out(self) -> int | None:
        """How many numbers a model gives, where just one of the targets says so."""
        known = [block.n_out for block in self.targets if block.n_out is not None]
        return known[0] if len(known) == 1 else None

    @property
    def loss_func(self) -> Callable[..., Any] | None:
        """The loss of the target, or None; several targets have none in common."""
        return self.targets[0].loss_func if len(self.targets) == 1 else None

    def of(self, items: Sequence[Any], with_labels: bool) -> Dataset:
        """The same for other items; without labels only the inputs of a sample remain."""
        keep = len(self.blocks) if with_labels else self.n_inp
        return Dataset(as_items(items), self.getters[:keep], self.blocks[:keep], self.n_inp, "test")


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
