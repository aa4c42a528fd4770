"""The task of `treadle train` on images: folders of classes become loaders and a classifier."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.cli.optimizers import find_recipe
from treadle.cli.processes import strategy

if TYPE_CHECKING:
    from treadle.cli.train import TrainSettings
    from treadle.data import DataLoaders
    from treadle.learner import Learner

DIGITS, IMAGENETTE = "digits", "imagenette-160"


class ImageTask:
    """Trains an image classifier by the settled `args`; a `Task` of `treadle.cli.running`."""

    def __init__(self, args: TrainSettings) -> None:
        self.args = args
        self.name = f"{Path(args.path).name or 'images'}-{args.arch}"

    def make_learner(self) -> Learner:
        """A vision learner for the data."""
        from treadle.metrics import accuracy
        from treadle.report import ReportCallback
        from treadle.vision import vision_learner

        assert self.args.arch
        return vision_learner(
            load_data(self.args),
            self.args.arch,
            pretrained=self.args.pretrained,
            metrics=accuracy,
            cbs=ReportCallback(),
            opt_func=find_recipe(self.args.opt),
            precision=self.args.precision,
            parallel=strategy(self.args),
        )

    def greet(self, learn: Learner) -> str:
        """What is trained on what, in a line."""
        dls = learn.dls
        return (
            f"{dls.train.n} images to train on, {dls.valid.n} to validate on, {dls.c} classes; "
            f"{self.args.arch} on {learn.device}"
        )

    def describe(self, learn: Learner) -> dict[str, object]:
        """The data, so that others in their place are noticed."""
        dls = learn.dls
        return {
            "classes": list(dls.vocab),
            "train_images": dls.train.n,
            "valid_images": dls.valid.n,
            "train_files": digest(dls.train.dataset.items, dls.path),
            "valid_files": digest(dls.valid.dataset.items, dls.path),
        }

    def fit(self, learn: Learner, cbs: Sequence[Any]) -> None:
        """One cycle from scratch, or a fine-tuning of trained weights."""
        assert self.args.lr
        if self.args.pretrained:
            learn.fine_tune(self.args.epochs, base_lr=self.args.lr, cbs=cbs)
        else:
            learn.fit_one_cycle(self.args.epochs, self.args.lr, cbs=cbs)


def is_data_set(path: str) -> bool:
    """Whether a data set is meant by its name, and not a folder of that name."""
    return path in (DIGITS, IMAGENETTE) and not Path(path).is_dir()


def load_data(args: TrainSettings) -> DataLoaders:
    """The loaders that the settled arguments ask for."""
    from treadle.data import URLs, digits_path, untar_data
    from treadle.vision.folder import folder_dataloaders

    if args.path == DIGITS:
        path = digits_path()
    elif args.path == IMAGENETTE:
        path = untar_data(URLs.IMAGENETTE_160)
    else:
        path = Path(args.path)
    assert args.size and args.presize and args.flip is not None
    return folder_dataloaders(
        path,
        size=args.size,
        presize=args.presize,
        global_bs=args.global_bs,
        seed=args.seed,
        flip=args.flip,
        min_scale=0.8 if args.path == DIGITS else 0.5,
        num_workers=args.workers,
        device=args.device,
    )


def digest(files: Sequence[Path], root: Path) -> str:
    """What changes when files are added, removed, renamed, reordered or get another size."""
    found = hashlib.sha256()
    for file in files:
        name = Path(file).relative_to(root).as_posix()
        found.update(f"{name}\0{Path(file).stat().st_size}\0".encode("utf-8", "surrogateescape"))
    return found.hexdigest()[:16]
