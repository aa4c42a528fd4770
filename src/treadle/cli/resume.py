"""`treadle resume`: a run that was interrupted goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import Parameter

from treadle.cli.processes import on_main
from treadle.cli.running import CONFIG, go_on
from treadle.cli.train import TrainSettings, check, shared, task_of
from treadle.errors import DataError

Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def resume(run: Path, /, *, max_time: str | None = None, debug: Flag = False) -> None:
    """Go on with a run that was interrupted, to its end.

    It ends with the same bits as a run that was not, and with the same files. A run that is
    finished stays as it is. One whose settings or data are no longer the same is an error that says
    what. The number of processes may be another: `torchrun --nproc-per-node=2 -m treadle resume
    RUN` goes on with the same batches, shared by two.

    Args:
        run: The run folder, as runs/DATE-TIME-NAME.
        max_time: When to stop again, with exit status 75: 90s, 30m, 2h, or in minutes.
        debug: Show the full traceback of an error.
    """
    from treadle.run.lock import sole_writer
    from treadle.world import world

    config = world().on_main(lambda: read_config(run))
    with on_main(lambda: sole_writer(run)):
        args = settings_of(config, run / CONFIG)
        check(args)
        go_on(task_of(shared(args)), run, max_time)


def read_config(run: Path) -> dict[str, Any]:
    """What config.json of a run of `treadle train` holds. Raises DataError."""
    from treadle.run.status import read_json

    if (run / "comparison.json").is_file():
        raise DataError(
            f"{run} is a comparison; the treadle compare that began it goes on with it."
        )
    config = read_json(run / CONFIG)
    if config.get("command") != "train":
        raise DataError(f"{run / CONFIG} is not that of a run of treadle train.")
    return config


def settings_of(config: Mapping[str, Any], where: Path) -> TrainSettings:
    """The settings in a config. Raises DataError if one is not of its kind."""
    kept: dict[str, Any] = {}
    for name, kind in get_type_hints(TrainSettings).items():
        if name in config:
            if not _is_a(config[name], kind):
                raise DataError(
                    f"{where}: {name} is {config[name]!r}, which it cannot be; put back what it "
                    "was."
                )
            kept[name] = config[name]
    kept["global_bs"] = kept.get("global_bs") or kept.get("bs")  # which the processes share
    return TrainSettings(**kept)


def _is_a(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_args(kind):
        return any(_is_a(value, one) for one in get_args(kind))
    return type(value) is kind or (kind is float and type(value) is int)
