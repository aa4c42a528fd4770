"""Trainings with everything on that is hard to resume, and what must come out of them alike."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from treadle.callbacks import (
    ActivationStats,
    CSVLogger,
    CutMix,
    EarlyStoppingCallback,
    EMACallback,
    GradientAccumulation,
    GradientLog,
    MixUp,
    ReduceLROnPlateau,
    SaveModelCallback,
    ShortEpochCallback,
)
from treadle.data import (
    CategoryBlock,
    DataBlock,
    DataLoaders,
    ImageBlock,
    IndexSplitter,
    Resize,
    aug_transforms,
)
from treadle.learner import Learner
from treadle.loop import Callback
from treadle.losses import CrossEntropyLossFlat
from treadle.metrics import accuracy
from treadle.optim import SGD, SOAP, Adam, Lookahead, Muon, RAdam, ScheduleFreeAdamW
from treadle.params import trainable_params

N, N_VALID, BS, SIZE = 52, 12, 8, 12  # five training batches an epoch: 8, 8, 8, 8, 8


class Noise(Callback):
    """Noise on each input, from the generators of Python and NumPy, as users have it."""

    run_valid = False

    def before_batch(self):
        strength = random.random() * float(np.random.rand())
        self.learn.xb = tuple(x + 0.1 * strength for x in self.xb)


class Seen(Callback):
    """Which samples came, update by update."""

    order = 10
    run_valid = False
    state_names = ("seen",)

    def before_fit(self):
        self.seen = []

    def after_batch(self):
        self.seen.append([self.epoch, self.iter, digest(self.y), *map(int, self._indices())])

    def _indices(self):
        return getattr(self.dls.train, "indices", ())


class Thaw(Callback):
    """All groups train from the fourth batch on, however they were before."""

    run_valid = False

    def after_batch(self):
        if (self.epoch, self.iter) == (0, 2):
            self.opt.unfreeze()


@dataclass(frozen=True)
class Case:
    """How a learner is made and trained; `batches` is how many that takes in all."""

    batches: int
    train: Callable[..., None]
    opt_func: Callable[..., Any] = Adam
    cbs: Callable[[], list[Callback]] = list
    groups: bool = False
    precision: str = "fp32"
    torch_loader: bool = False

    def learner(self, path: Path, seed: int, workers: int = 0, cache: str | None = None) -> Learner:
        """As a process makes it that starts with random generators in the state of `seed`."""
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        dls = torch_loaders(workers) if self.torch_loader else block_loaders(workers, cache)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(4 * (SIZE - 2) ** 2, 4),
        )
        return Learner(
            dls,
            model,
            CrossEntropyLossFlat(),
            self.opt_func,
            lr=0.01,
            splitter=two_groups if self.groups else trainable_params,
            cbs=[Noise(), Seen(), *self.cbs()],
            metrics=accuracy,
            path=path,
            precision=self.precision,
        )


def two_groups(model):
    return [list(model[:2].parameters()), list(model[2:].parameters())]


def pictures() -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.RandomState(5)
    labels = drawn.randint(0, 4, N)
    images = drawn.randint(0, 200, (N, SIZE + 4, SIZE + 2)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 3 * label : 3 * label + 3] += 55
    return images, labels


def block_loaders(workers: int, cache: str | None) -> DataLoaders:
    images, labels = pictures()
    block = DataBlock(
        blocks=(ImageBlock("L"), CategoryBlock),
        get_x=lambda item: item[0],
        get_y=lambda item: int(item[1]),
        splitter=IndexSplitter(range(N - N_VALID, N)),
        item_tfms=Resize(SIZE),
        batch_tfms=aug_transforms(),
    )
    items = list(zip(images, labels, strict=True))
    return block.dataloaders(items, bs=BS, num_workers=workers, cache=cache, device="cpu")


def torch_loaders(workers: int) -> DataLoaders:
    """Torch's own loader, whose order comes from a generator of its own, and whose workers are
    processes."""
    images, labels = pictures()
    x = torch.from_numpy(images[:, None, :SIZE, :SIZE]).float() / 255
    data = torch.utils.data.TensorDataset(x, torch.from_numpy(labels))
    train = torch.utils.data.Subset(data, range(N - N_VALID))
    valid = torch.utils.data.Subset(data, range(N - N_VALID, N))
    own = torch.Generator().manual_seed(int(torch.randint(1000, ())))
    return DataLoaders(
        torch.utils.data.DataLoader(train, BS, True, generator=own, num_workers=workers),
        torch.utils.data.DataLoader(valid, BS),
        device="cpu",
    )


CASES: dict[str, Case] = {
    "everything": Case(
        15,
        lambda learn, **kw: learn.fit_one_cycle(3, 0.02, **kw),
        cbs=lambda: [EMACallback(0.8), MixUp(), GradientAccumulation(20), CSVLogger()],
        precision="bf16",
    ),
    "fine_tune": Case(
        15,
        lambda learn, **kw: learn.fine_tune(2, 0.05, wd=0.1, **kw),
        SGD,
        lambda: [SaveModelCallback("accuracy"), GradientAccumulation(16)],
        groups=True,
    ),
    "plateau": Case(
        20,  # the sixth epoch is not trained, for the fourth was no better than the second
        lambda learn, **kw: learn.fit(6, 0.01, **kw),
        cbs=lambda: [
            ReduceLROnPlateau(min_delta=5.0, patience=1),
            EarlyStoppingCallback(min_delta=5.0, patience=3),
            SaveModelCallback(),
            CutMix(),
        ],
    ),
    "lookahead": Case(
        10,
        lambda learn, **kw: (learn.freeze(), learn.fit_flat_cos(2, slice(0.001, 0.01), **kw)),
        lambda params, **kw: Lookahead(RAdam(params, **kw), k=3),
        lambda: [Thaw(), EMACallback(0.9), GradientLog(), ActivationStats()],
        groups=True,
    ),
    "schedule_free": Case(15, lambda learn, **kw: learn.fit(3, 0.01, **kw), ScheduleFreeAdamW),
    "muon": Case(15, lambda learn, **kw: learn.fit_sgdr(2, 1, 0.01, **kw), Muon),
    "soap": Case(10, lambda learn, **kw: learn.fit(2, 0.01, **kw), SOAP),
    "torch": Case(
        15,
        lambda learn, **kw: learn.fit_one_cycle(3, 0.01, **kw),
        torch.optim.AdamW,
        torch_loader=True,
    ),
    "short": Case(
        9,
        lambda learn, **kw: learn.fit_one_cycle(3, **kw),
        cbs=lambda: [ShortEpochCallback(0.6), GradientAccumulation(16)],
    ),
}


def outcome(learn: Learner) -> dict[str, str]:
    """Digests of all that a fit leaves."""
    recorder = learn.recorder
    kept = {cb.name: cb.state_dict() for cb in learn.cbs}
    for name in ("recorder", "checkpoint"):  # with seconds in it, and what only one of them has
        kept.pop(name, None)
    history = learn.path / "history.csv"
    rows = history.read_text().splitlines() if history.exists() else []
    parts = {
        "weights": learn.model.state_dict(),
        "raw weights": getattr(getattr(learn, "ema", None), "raw", None),
        "optimizer": learn.opt.state_dict(),
        "frozen": [p.requires_grad for p in learn.model.parameters()],
        "losses": [recorder.raw_losses, recorder.losses],
        "rows": [recorder.values, recorder.iters, [row[:-1] for row in recorder.rows]],
        "hypers": recorder.hypers,
        "samples": learn.seen.seen,
        "callbacks": kept,
        "history": [row.rpartition(",")[0] for row in rows],
        "loop": [learn.updates, learn.planned_updates, learn.epoch, learn.n_epoch],
        "loaders": [dl.epoch for dl in learn.dls if hasattr(dl, "epoch")],
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    return {name: digest(part) for name, part in parts.items()}


def digest(value: Any) -> str:
    """Of every bit and every type in nested containers; the order of keys does not count."""
    found = hashlib.sha256()
    _feed(value, found)
    return found.hexdigest()[:16]


def _feed(value: Any, found: Any) -> None:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        found.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, Path):
        found.update(value.name.encode())
    elif isinstance(value, dict):
        for key, inner in sorted(value.items(), key=lambda pair: repr(pair[0])):
            found.update(repr(key).encode())
            _feed(inner, found)
    elif isinstance(value, (list, tuple)):
        found.update(f"{type(value).__name__}{len(value)}".encode())
        for inner in value:
            _feed(inner, found)
    else:
        found.update(f"{type(value).__name__}{value!r}".encode())
