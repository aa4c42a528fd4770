"""The samples of a pass over a loader, which can be had again afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from treadle.data import DataLoader, Dataset, adapt
from treadle.errors import UsageError
from treadle.loop import Callback
from treadle.metrics import batch_size


class SampleOrder(Callback):
    """Notes which sample of the data set comes when; of Treadle's loaders only, which tell."""

    run_train = False

    def before_validate(self) -> None:
        self.indices: list[int] = []

    def after_batch(self) -> None:
        if self.pred is not None and isinstance(self.dl, DataLoader):
            self.indices += self.dl.indices.tolist()


class Samples(Sequence[Any]):
    """The `n` samples that a pass over `loader` saw, in its order.

    `samples[i]` is what its picture is made of: a path, an image, an array; None where the loader
    does not say. `batch(places)` are the samples once more, as the model got them.

    Args:
        loader: what was passed over.
        n: how many samples came.
        indices: where each stands in the data set, if the loader told.
        epoch: the epoch of the loader that it was.
    """

    def __init__(
        self, loader: Any, n: int, indices: Sequence[int] | None = None, epoch: int = 0
    ) -> None:
        self.loader, self.n, self.indices, self.epoch = loader, n, indices, epoch

    def __len__(self) -> int:
        return self.n

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> list[Any]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(self.n))]
        if not -self.n <= place < self.n:
            raise IndexError(place)
        dataset = getattr(self.loader, "dataset", None)
        if self.indices is None or not isinstance(dataset, Dataset):
            return None
        return dataset.value(self.indices[place], 0)

    def batch(self, places: Sequence[int]) -> tuple[Tensor, ...]:
        """A batch of the samples at these places of the pass, augmented as they were then.

        Of other loaders than Treadle's the batches are read once more, until all have come.
        """
        if self.indices is not None:
            found: tuple[Tensor, ...] = self.loader.batch_of(
                [self.indices[place] for place in places], self.epoch
            )
            return found
        return _picked(self.loader, places)


def _picked(loader: Iterable[Any], places: Sequence[int]) -> tuple[Tensor, ...]:
    rows: dict[int, tuple[Tensor, ...]] = {}
    start = 0
    for batch in loader:
        parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        if not all(isinstance(part, Tensor) for part in parts):
            raise UsageError(
                "samples can be picked out of batches that are tuples of tensors; these have "
                f"{', '.join(type(part).__name__ for part in parts)}."
            )
        stop = start + batch_size(parts)
        for place in {*places} - rows.keys():
            if start <= place < stop:
                rows[place] = tuple(part[place - start] for part in parts)
        start = stop
        if len(rows) == len({*places}):
            break
    if len(rows) < len({*places}):
        raise _moved_on()
    chosen = [rows[place] for place in places]
    return tuple(torch.stack(list(parts)) for parts in zip(*chosen, strict=True))


def check_same(now: Tensor, then: Tensor) -> None:
    """That samples are those of the pass: targets or losses `now`, and as they were `then`.

    Raises `UsageError` otherwise.
    """
    now, then = (t.detach().cpu().reshape(len(t), -1) for t in (now, then))
    if now.shape != then.shape or not torch.allclose(
        now.double(), then.double(), rtol=1e-2, atol=1e-4, equal_nan=True
    ):
        raise _moved_on()


def _moved_on() -> UsageError:
    return UsageError(
        "the loader gives other samples than before, or the model was trained since: what was "
        "found no longer fits them. Give from_learner a dl= that has a fixed order, and call it "
        "after the training."
    )


def loader_of(learn: Any, ds_idx: int, dl: Any) -> Any:
    """`dl`, or `learn.dls[ds_idx]`: of one that shuffles, augments or leaves out a last batch, all
    samples in their order and as they are."""
    if dl is not None:
        return adapt(dl, device=getattr(learn.dls, "device", None))
    loader = learn.dls[ds_idx]
    if isinstance(loader, DataLoader) and (loader.augment or loader.drop_last):
        return loader.over(loader.dataset, cache=None)
    return loader


def ask(learn: Any, ds_idx: int, dl: Any, **options: Any) -> tuple[Samples, tuple[Any, ...]]:
    """What `learn.get_preds(with_loss=True, **options)` says of a loader, and of which samples."""
    loader = loader_of(learn, ds_idx, dl)
    order, epoch = SampleOrder(), getattr(loader, "epoch", 0)
    preds, *rest = learn.get_preds(dl=loader, with_loss=True, cbs=order, **options)
    if preds is None:
        raise UsageError("there is nothing to interpret: the loader gave no batch.")
    if not isinstance(preds, Tensor) or not isinstance(rest[0], Tensor):
        raise UsageError(
            "an interpretation is of one prediction and one target a sample; here are "
            f"{_counted(preds)} and {_counted(rest[0])}."
        )
    return samples_of(loader, len(preds), order, epoch), (preds, *rest)


def samples_of(loader: Any, n: int, order: SampleOrder, epoch: int) -> Samples:
    """The samples of a pass that `order` went along with."""
    return Samples(loader, n, order.indices if len(order.indices) == n else None, epoch)


def _counted(value: Any) -> str:
    return f"{len(value)} in a tuple" if isinstance(value, tuple) else f"a {type(value).__name__}"
