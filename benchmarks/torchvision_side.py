"""torchvision's contestant of data.py: transforms v2 in a plain DataLoader with process workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms import v2

import workloads
from common import Turn

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Files, decoded to uint8 tensors and transformed one by one, as in torchvision's guides."""

    def __init__(self, files: list[str], classes: list[str], transform: Callable[..., Any]) -> None:
        self.files, self.transform = files, transform
        self.labels = [classes.index(Path(file).parent.name) for file in files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = decode_image(read_file(self.files[index]), ImageReadMode.RGB)
        return self.transform(image), self.labels[index]


def transforms() -> tuple[v2.Compose, v2.Compose]:
    """What comes nearest to `aug_transforms`, and the same size for validation."""
    size = workloads.SIZE
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    train = [
        v2.RandomResizedCrop(size, scale=(workloads.MIN_SCALE, 1), ratio=(1, 1), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomPerspective(0.2, p=0.75),
        v2.RandomRotation(10),
        v2.ColorJitter(brightness=0.2, contrast=0.2),
    ]
    valid = [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
    return v2.Compose([*train, *last]), v2.Compose([*valid, *last])


def loaders(files: list[str], warm_up: list[str], workers: int) -> Turn:
    """The loaders of `files`; those of `warm_up` are read through once at the start."""
    train, valid = transforms()

    def make(names: list[str]) -> Any:
        classes = sorted({Path(name).parent.name for name in names})
        held_out = [name for name in names if Path(name).parents[1].name == "val"]
        common: dict[str, Any] = {
            "batch_size": workloads.BATCH_SIZE,
            "num_workers": workers,
            "persistent_workers": workers > 0,
        }
        rest = sorted(set(names) - set(held_out))
        return SimpleNamespace(
            train=DataLoader(Images(rest, classes, train), shuffle=True, drop_last=True, **common),
            valid=DataLoader(Images(held_out, classes, valid), **common),
        )

    workloads.loader_turn(lambda: make(warm_up))
    return lambda: workloads.loader_turn(lambda: make(files))
