"""`treadle compare`: optimizers side by side, a table, a verdict and a page."""

from __future__ import annotations

import hashlib
import json
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from treadle.cli.images import load_data
from treadle.cli.optimizers import file_digests, read_opts
from treadle.cli.train import TrainSettings, check, settled
from treadle.errors import TreadleError, UsageError

if TYPE_CHECKING:
    from treadle.study import Comparison


@Parameter(name="*")
@dataclass(frozen=True)
class CompareSettings:
    """What `treadle compare` can be told."""

    data: str = "digits"
    """digits, imagenette-160, or a folder of images."""
    _: KW_ONLY
    opt: Annotated[list[str], Parameter(negative="", show_default=False)] = field(
        default_factory=list
    )
    """An optimizer, as adam or momentum:lr=0.1,mom=0.8; repeatable. chapter is all of the
    chapter's [default: chapter]"""
    opt_file: Annotated[list[str], Parameter(negative="", show_default=False)] = field(
        default_factory=list
    )
    """One from a file of yours, as my_steppers.py:my_recipe, which is run; repeatable."""
    seeds: Annotated[int, Parameter(alias="-s")] = 3
    """How many times each is trained, from other initial weights and in another order."""
    epochs: Annotated[int, Parameter(alias="-e")] = 3
    """How many times to go through the training images."""
    lr: float | None = None
    """The rate of those that are given none [default: the optimizer's usual one]"""
    each_finds_its_rate: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Run the rate finder before each training, and take what it suggests."""
    arch: str = "resnet18"
    """The architecture: any classification model of torchvision."""
    bs: int = 64
    """Images a batch."""
    size: int | None = None
    """Pixels a side that the model sees [default: 128, for digits 32]"""
    presize: int | None = None
    """Pixels a side to which images are cut before they are augmented [default: 1.25 x size]"""
    workers: int | None = None
    """Threads that read images [default: one a core, at most 8]"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What to compute in."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps [default: the accelerator, where there is one]"""
    flip: bool | None = None
    """Mirror images left to right at random [default: yes, for digits no]"""
    out: Path | None = None
    """The folder [default: runs/compare-..., the same for the same settings]"""
    debug: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Show the full traceback of an error."""


def compare(args: CompareSettings = CompareSettings()) -> None:
    """Compare optimizers: the same data, initial weights and order for each.

    Without arguments it is the experiment of the book chapter *The Training Process* on
    scikit-learn's handwritten digits, offline, in some minutes. Each optimizer is trained with
    each seed; the table has means and spreads (standard deviations) over the seeds.

    The folder gets `comparison.json`, `report.html` and a file for each training. Interrupted, the
    same command goes on where it was; with more `--seeds` it adds to what is there.
    """
    from treadle.study import compare as side_by_side

    data = data_settings(args)
    check(data)
    if args.seeds < 1:
        raise UsageError(f"--seeds {args.seeds} cannot be meant; give a number above 0.")
    data = settled(data)
    rows = read_opts(args.opt, args.opt_file, args.lr)
    settings = {**described(data), **file_digests(args.opt_file)}
    folder = args.out or Path("runs") / folder_name(args, settings)
    dls = load_data(data)
    name = Path(data.path).name
    print(f"{dls.train.n} images to train on, {dls.valid.n} to validate on; {folder}")
    try:
        found = side_by_side(
            lambda: make_learner(args, dls),
            rows,
            args.seeds,
            args.epochs,
            each_finds_its_rate=args.each_finds_its_rate,
            folder=folder,
            title=f"{name}, {args.arch}, {args.epochs} epoch{'s' * (args.epochs > 1)}",
            settings=settings,
        )
    except KeyboardInterrupt:
        leave(folder)
        raise
    tell(found, folder)
    if not found.ranking():
        raise TreadleError("no training got to its end; the reasons are above.")


def data_settings(args: CompareSettings) -> TrainSettings:
    """The part of the arguments that `treadle train` has too."""
    return TrainSettings(
        args.data,
        arch=args.arch,
        epochs=args.epochs,
        lr=args.lr,
        bs=args.bs,
        size=args.size,
        presize=args.presize,
        workers=args.workers,
        precision=args.precision,
        device=args.device,
        flip=args.flip,
    )


def described(data: TrainSettings) -> dict[str, Any]:
    """What the trainings share, as the folder and the page have it."""
    return {
        "data": data.path,
        "arch": data.arch,
        "batch size": data.bs,
        "size": data.size,
        "presize": data.presize,
        "flip": data.flip,
    }


def folder_name(args: CompareSettings, settings: dict[str, Any]) -> str:
    """The same for the same comparison, however many seeds it has: so it goes on where it was."""
    asked = asdict(args)
    for name in ("seeds", "out", "debug", "workers"):
        del asked[name]
    text = json.dumps([asked, settings], sort_keys=True, default=str)
    place = Path(args.data).name or "images"
    return f"compare-{place}-{args.arch}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def make_learner(args: CompareSettings, dls: Any) -> Any:
    """A fresh learner; the loaders are the same for all, for the study to rewind."""
    from treadle.metrics import accuracy
    from treadle.vision import vision_learner

    return vision_learner(
        dls, args.arch, pretrained=False, metrics=accuracy, precision=args.precision
    )


def tell(found: Comparison, folder: Path) -> None:
    """The table, the verdict, and where the page lies."""
    from rich.console import Console

    console = Console()
    wide = rich_table(found, wide=True)
    needed = console.measure(wide, options=console.options.update(max_width=1000)).maximum
    fits = needed <= console.width
    console.print(wide if fits else rich_table(found, wide=False), highlight=False)
    for sentence in found.verdict():
        console.print(sentence, highlight=False, markup=False, soft_wrap=not console.is_terminal)
    print(f"report   {write_page(found, folder)}")


def leave(folder: Path) -> None:
    """What an interrupted comparison leaves: a page of what is done, and how to go on."""
    from treadle.study import Comparison

    file = folder / "comparison.json"
    if not file.is_file():
        return
    found = Comparison.from_dict(json.loads(file.read_text("utf-8")))
    total = len(found.rows) * len(found.seeds)
    if found.missing < total:
        print(f"report   {write_page(found, folder)}")
    print(f"{total - found.missing} of {total} trainings are done; the same command goes on.")


def write_page(found: Comparison, folder: Path) -> Path:
    """The page of the comparison, into its folder."""
    from treadle.report import write_comparison

    return write_comparison(found, folder / "report.html")


def rich_table(found: Comparison, wide: bool) -> Any:
    """The table for a terminal, with mean and spread side by side if it is to be `wide`, else one
    below the other; the best of each column is bold."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from treadle.study.table import cells, heads, label

    table = Table(box=box.SIMPLE_HEAD, title=Text(found.title), title_style="bold", pad_edge=False)
    table.add_column("")
    for head in heads(found):
        table.add_column(head, justify="right", no_wrap=True)
    for row in found.rows:
        drawn = [Text(label(found, row))]
        for column, (mean, spread) in zip(found.columns, cells(found, row), strict=True):
            cell = Text(mean, style="bold" if row is found.best(column) else "")
            if spread:
                cell.append(f"{' ' if wide else chr(10)}{spread}", style="not bold dim")
            drawn.append(cell)
        table.add_row(*drawn)
    return table
