"""`treadle train`: data become a trained model and a report."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from treadle.cli.images import DIGITS, ImageTask, is_data_set
from treadle.cli.optimizers import find_recipe, usual_lr
from treadle.cli.processes import processes
from treadle.cli.running import Task, begin, read_minutes
from treadle.cli.text import TextTask, check_text
from treadle.errors import UsageError

_ABOVE_ZERO = "epochs bs global_bs size presize lr checkpoint_every seq_len hidden".split()


@Parameter(name="*")
@dataclass(frozen=True)
class TrainSettings:
    """What `treadle train` can be told; also what config.json records."""

    path: str = "digits"
    """digits, imagenette-160, or a folder of images; of texts, a .txt file or a folder."""
    _: KW_ONLY
    task: Literal["images", "lm", "text-classify"] = "images"
    """Classify images, foretell the next word of a text, or classify texts."""
    arch: str | None = None
    """The architecture: any classification model of torchvision; for texts awd_lstm, lstm, gru or
    transformer [default: resnet18, for texts awd_lstm]"""
    epochs: Annotated[int, Parameter(alias="-e")] = 5
    """How many times to go through the training images."""
    lr: float | None = None
    """The highest learning rate of the one-cycle schedule [default: the optimizer's usual one]"""
    bs: int | None = None
    """Images or texts a batch, of several processes in each; rows of a text that are read side by
    side [default: 64]"""
    global_bs: int | None = None
    """In place of --bs: images or texts a batch of all processes together."""
    size: int | None = None
    """Pixels a side that the model sees [default: 128, for digits 32]"""
    presize: int | None = None
    """Pixels a side to which images are cut before they are augmented [default: 1.25 x size]"""
    seq_len: int = 72
    """Words of a text that are read at a time."""
    hidden: int | None = None
    """Features between the layers of a model for texts [default: the architecture's own]"""
    opt: str = "adam"
    """The optimizer: adadelta, adagrad, adam, adamw, adan, lamb, larc, lion, momentum, muon, nadam,
    qhadam, radam, ranger, rmsprop, schedule_free, sgd, soap."""
    seed: int = 42
    """Settles the split, the initial weights, the order and the augmentation."""
    workers: int | None = None
    """Threads that read images [default: one a core, at most 8]"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What to compute in."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps [default: the accelerator, where there is one]"""
    parallel: Literal["ddp", "fsdp"] | None = None
    """How several processes share the model: each has all of it, or a share [default: ddp]"""
    sync_bn: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Take the statistics of batch norms over all processes."""
    flip: bool | None = None
    """Mirror images left to right at random [default: yes, for digits no]"""
    pretrained: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Start from weights trained on ImageNet (downloaded once) and fine-tune them."""
    out: Path | None = None
    """The run folder, new or empty [default: runs/DATE-TIME-NAME]"""
    checkpoint_every: int | None = None
    """Updates from one checkpoint to the next [default: an epoch's]"""
    max_time: str | None = None
    """When to stop with a checkpoint and exit status 75: 90s, 30m, 2h, or in minutes."""
    debug: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Show the full traceback of an error."""


def train(args: TrainSettings = TrainSettings()) -> None:
    """Train an image classifier, a language model, or a classifier of texts.

    Without PATH it trains on scikit-learn's handwritten digits, offline, in about a minute. PATH
    may be the name of a data set (`imagenette-160` is downloaded once), or a folder with
    `train/CLASS/*` and `valid|val|test/CLASS/*`, or with `CLASS/*` alone, of which a fifth is then
    set aside to validate on.

    With `--task lm` PATH is a .txt file, of which the last tenth validates, a folder with
    `train.txt` and `valid.txt`, or a folder of .txt files. With `--task text-classify` it is a
    folder as for images, but of .txt files.

    The run folder gets `config.json`, `history.csv`, `events.jsonl`, `checkpoints`,
    `model.safetensors`, `record.json` and `report.html`. After Ctrl-C, a SIGTERM, the time limit or
    a power cut, `treadle resume RUN` goes on with it, to the same bits.

    Several processes are started by `torchrun --nproc-per-node=4 -m treadle train PATH ...`. They
    train one model, in one run folder. With `--max-restarts` they are started again when one of
    them fails, and go on from the last checkpoint.
    """
    from treadle.cli.resume import resume
    from treadle.run.restart import begun_here
    from treadle.world import world

    check(args)
    check_processes(args)
    earlier = world().on_main(lambda: begun_here(args.out))
    if earlier is not None:  # torchrun has started its processes again
        resume(earlier, max_time=args.max_time)
    else:
        begin(task_of(settled(args)))


def task_of(args: TrainSettings) -> Task:
    """What the settled settings ask to be trained."""
    return ImageTask(args) if args.task == "images" else TextTask(args)


def check(args: TrainSettings) -> None:
    """Refuse what cannot be meant, before anything is loaded."""
    for name in _ABOVE_ZERO:
        value = getattr(args, name)
        if value is not None and value <= 0:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} {value} cannot be meant; give a number above 0.")
    if args.task != "images":
        check_text(args)
    if args.workers is not None and args.workers < 0:
        raise UsageError(f"--workers {args.workers} cannot be meant; give 0 or more.")
    read_minutes(args.max_time)
    find_recipe(args.opt)
    if processes() > 1:
        check_devices(args.device)
    if args.device is not None:
        check_device(args.device)


def check_processes(args: TrainSettings) -> None:
    """Refuse what cannot be meant of several processes, or of one."""
    if args.bs is not None and args.global_bs is not None:
        raise UsageError(
            f"--bs {args.bs} and --global-bs {args.global_bs} say one thing in two ways; give the "
            "batch size of each process, or that of all."
        )
    if args.parallel is not None and processes() == 1:
        raise UsageError(
            f"--parallel {args.parallel} is for several processes; start them with torchrun "
            "--nproc-per-node=N -m treadle train ..."
        )


def check_devices(name: str | None) -> None:
    """Refuse a device that several processes cannot have."""
    import torch

    if name is not None and ":" in name:
        raise UsageError(
            f"--device {name} is one device, and torchrun started {processes()} processes; leave "
            f"it out or give {name.partition(':')[0]}, and each takes one of its own."
        )
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if here > gpus > 0 and name in (None, "cuda"):
        raise UsageError(
            f"torchrun started {here} processes on a machine with {gpus} GPU{'s' * (gpus > 1)}; "
            f"start one for each GPU, with --nproc-per-node={gpus}, or give --device cpu."
        )


def check_device(name: str) -> None:
    """Refuse a device that this machine or this torch does not have."""
    import torch

    from treadle.world import world

    world()  # so that each process looks at its own
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"--device {name} cannot be used here ({str(error).splitlines()[0]}); leave it out, or "
            "give cpu."
        ) from error


def shared(args: TrainSettings) -> TrainSettings:
    """The settings with both batch sizes: `global_bs`, which is what is trained with, and the
    largest share of it that one of the processes gets."""
    from treadle.world import world

    n = world().size
    whole = args.global_bs or (args.bs or 64) * n
    return replace(args, global_bs=whole, bs=-(-whole // n))


def settled(args: TrainSettings) -> TrainSettings:
    """The settings with every default filled in; a folder by its full path, so that the run can go
    on from wherever."""
    args = replace(args, opt=args.opt.lower(), lr=args.lr or usual_lr(args.opt))
    args = shared(args)
    if args.task != "images":
        return replace(args, path=str(Path(args.path).resolve()), arch=args.arch or "awd_lstm")
    by_name = is_data_set(args.path)
    digits = by_name and args.path == DIGITS
    size = args.size or (32 if digits else 128)
    return replace(
        args,
        path=args.path if by_name else str(Path(args.path).resolve()),
        arch=args.arch or "resnet18",
        size=size,
        presize=args.presize or (size if digits else round(size * 1.25)),
        flip=not digits if args.flip is None else args.flip,
    )
