"""`treadle train`: a folder of images becomes a trained model and a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from treadle.errors import UsageError

if TYPE_CHECKING:
    from treadle.data import DataLoaders
    from treadle.learner import Learner

OptName = Literal["adam", "adamw", "sgd", "momentum", "rmsprop", "radam", "lamb", "ranger"]


@Parameter(name="*")
@dataclass(frozen=True)
class TrainSettings:
    """What `treadle train` can be told; also what config.json records."""

    path: str = "digits"
    """digits, imagenette-160, or a folder of images."""
    _: KW_ONLY
    arch: str = "resnet18"
    """The architecture: any classification model of torchvision."""
    epochs: Annotated[int, Parameter(alias="-e")] = 5
    """How many times to go through the training images."""
    lr: float | None = None
    """The highest learning rate of the one-cycle schedule [default: 0.003, with SGD 0.03]"""
    bs: int = 64
    """Images a batch."""
    size: int | None = None
    """Pixels a side that the model sees [default: 128, for digits 32]"""
    presize: int | None = None
    """Pixels a side to which images are cut before they are augmented [default: 1.25 x size]"""
    opt: OptName = "adam"
    """The optimizer."""
    seed: int = 42
    """Settles the split, the initial weights, the order and the augmentation."""
    workers: int | None = None
    """Threads that read images [default: one a core, at most 8]"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What to compute in."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps [default: the accelerator, where there is one]"""
    flip: bool | None = None
    """Mirror images left to right at random [default: yes, for digits no]"""
    pretrained: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Start from weights trained on ImageNet (downloaded once) and fine-tune them."""
    out: Path | None = None
    """The run folder, new or empty [default: runs/DATE-TIME-NAME]"""
    debug: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Show the full traceback of an error."""


def train(args: TrainSettings = TrainSettings()) -> None:
    """Train an image classifier.

    Without PATH it trains on scikit-learn's handwritten digits, offline, in about a minute. PATH
    may be the name of a data set (`imagenette-160` is downloaded once), or a folder with
    `train/CLASS/*` and `valid|val|test/CLASS/*`, or with `CLASS/*` alone, of which a fifth is then
    set aside to validate on.

    The run folder gets `config.json`, `history.csv`, `model.safetensors`, `record.json` and
    `report.html`.
    """
    import torch

    from treadle.run import new_run_folder, write_json

    started, clock = datetime.now(), time.perf_counter()
    check(args)
    args = settled(args)
    torch.manual_seed(args.seed)
    dls = load_data(args)
    learn = make_learner(args, dls)
    name = f"{Path(args.path).name or 'images'}-{args.arch}"
    folder = new_run_folder(name, args.out)
    config = describe(args, learn)
    write_json(folder / "config.json", config)
    print(
        f"{dls.train.n} images to train on, {dls.valid.n} to validate on, {dls.c} classes; "
        f"{args.arch} on {learn.device}"
    )
    try:
        fit(args, learn)
    finally:  # an interrupted run keeps what it has
        epochs = len(learn.recorder.rows)
        if epochs:
            write_results(folder, learn, name, config, started)
            accuracy = learn.recorder.rows[-1][learn.recorder.metric_names.index("accuracy")]
            print(f"accuracy {accuracy:.4f} after {epochs} epochs, ", end="")
            print(f"{time.perf_counter() - clock:.0f} s in all")
            print(f"report   {folder / 'report.html'}")


def check(args: TrainSettings) -> None:
    """Refuse numbers that cannot be meant, before anything is loaded."""
    for name in ("epochs", "bs", "size", "presize", "lr"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UsageError(f"--{name} {value} cannot be meant; give a number above 0.")
    if args.workers is not None and args.workers < 0:
        raise UsageError(f"--workers {args.workers} cannot be meant; give 0 or more.")
    if args.device is not None:
        check_device(args.device)


def check_device(name: str) -> None:
    """Refuse a device that this machine or this torch does not have."""
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"--device {name} cannot be used here ({str(error).splitlines()[0]}); leave it out, or "
            "give cpu."
        ) from error


def settled(args: TrainSettings) -> TrainSettings:
    """The settings with every default filled in."""
    digits = is_digits(args)
    size = args.size or (32 if digits else 128)
    return replace(
        args,
        lr=args.lr or (0.03 if args.opt in ("sgd", "momentum") else 0.003),
        size=size,
        presize=args.presize or (size if digits else round(size * 1.25)),
        flip=not digits if args.flip is None else args.flip,
    )


def is_digits(args: TrainSettings) -> bool:
    """Whether the embedded digits are meant, and not a folder of that name."""
    return args.path == "digits" and not Path("digits").is_dir()


def load_data(args: TrainSettings) -> DataLoaders:
    """The loaders that the settled arguments ask for."""
    from treadle.data import URLs, digits_path, untar_data
    from treadle.vision.folder import folder_dataloaders

    if is_digits(args):
        path = digits_path()
    elif args.path == "imagenette-160" and not Path(args.path).is_dir():
        path = untar_data(URLs.IMAGENETTE_160)
    else:
        path = Path(args.path)
    assert args.size and args.presize and args.flip is not None
    return folder_dataloaders(
        path,
        size=args.size,
        presize=args.presize,
        bs=args.bs,
        seed=args.seed,
        flip=args.flip,
        min_scale=0.8 if is_digits(args) else 0.5,
        num_workers=args.workers,
        device=args.device,
    )


def make_learner(args: TrainSettings, dls: DataLoaders) -> Learner:
    """A vision learner for the data."""
    from treadle.metrics import accuracy
    from treadle.report import ReportCallback
    from treadle.vision import vision_learner

    return vision_learner(
        dls,
        args.arch,
        pretrained=args.pretrained,
        metrics=accuracy,
        cbs=ReportCallback(),
        opt_func=opt_func(args.opt),
        precision=args.precision,
    )


def opt_func(name: OptName) -> Callable[..., Any]:
    """The recipe that `--opt` names."""
    from functools import partial

    from treadle import optim

    recipes: dict[str, Callable[..., Any]] = {
        "adam": optim.Adam,
        "adamw": optim.AdamW,
        "sgd": optim.SGD,
        "momentum": partial(optim.SGD, mom=0.9),
        "rmsprop": optim.RMSProp,
        "radam": optim.RAdam,
        "lamb": optim.Lamb,
        "ranger": optim.ranger,
    }
    return recipes[name]


def fit(args: TrainSettings, learn: Learner) -> None:
    """One cycle from scratch, or a fine-tuning of trained weights."""
    assert args.lr
    if args.pretrained:
        learn.fine_tune(args.epochs, base_lr=args.lr)
    else:
        learn.fit_one_cycle(args.epochs, args.lr)


def describe(args: TrainSettings, learn: Learner) -> dict[str, object]:
    """All that is needed to do it again, for config.json and the report."""
    from treadle.run import environment

    settings = asdict(args)
    del settings["debug"], settings["out"]  # how it was run, not what
    settings["workers"] = learn.dls.train.num_workers
    settings["device"] = str(learn.device)
    return {
        "command": "train",
        **settings,
        "classes": list(learn.dls.vocab),
        "train_images": learn.dls.train.n,
        "valid_images": learn.dls.valid.n,
        "parameters": sum(p.numel() for p in learn.model.parameters()),
        "environment": environment(learn.device),
    }


def write_results(
    folder: Path, learn: Learner, name: str, config: dict[str, object], started: datetime
) -> None:
    """History, weights, record and report into the run folder."""
    from treadle.report import collect, write_report
    from treadle.run import write_history, write_record
    from treadle.run.weights import save_weights

    recorder = learn.recorder
    write_history(folder / "history.csv", recorder.metric_names, recorder.rows)
    save_weights(learn.model, folder / "model.safetensors")
    shown = {key: value for key, value in config.items() if key != "environment"}
    record = collect(learn, name, shown, started)
    write_record(folder, record)
    write_report(record, folder / "report.html")
