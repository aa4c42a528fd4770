"""A run of any task: its folder and lock, its checkpoints, how it ends, and how it goes on.

What a task trains, and on what, it says itself: see `Task`.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from treadle.cli.processes import command, on_main, processes, rank
from treadle.errors import DataError, UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from treadle.cli.train import TrainSettings
    from treadle.learner import Learner
    from treadle.loop.signals import Preempted

CONFIG, CHECKPOINTS = "config.json", "checkpoints"

# From what it was: with the same bits at the end, or, of other processes, the same samples.
_MAY_DIFFER = ("environment", "workers", "processes", "bs")
_OF_SEVERAL = ("global_bs", "parallel", "processes", "sync_bn")
_REASONS = {75: "the time limit", 130: "Ctrl-C"}  # by exit status
_SECONDS = {"s": 1, "m": 60, "h": 3600}


class Task(Protocol):
    """What is particular to a task.

    Attributes:
        args: the settled settings.
        name: what to call the run.
    """

    @property
    def args(self) -> TrainSettings: ...

    @property
    def name(self) -> str: ...

    def make_learner(self) -> Learner:
        """The learner, on its data."""

    def greet(self, learn: Learner) -> str:
        """What is trained on what, in a line."""

    def describe(self, learn: Learner) -> dict[str, object]:
        """Of the data what config.json keeps; a run goes on only where it is still the same."""

    def fit(self, learn: Learner, cbs: Sequence[Any]) -> None:
        """The training, in one call of a verb of the learner's."""


def begin(task: Task) -> None:
    """Make the folder of a new run and train in it, to its end or until it is left."""
    from treadle.world import world

    clock = time.perf_counter()
    minutes = read_minutes(task.args.max_time)
    with on_main(lambda: _new_folder(task)) as folder:
        learn = _make(task)
        config = world().on_main(lambda: _started(task, learn, folder))
        _greet(task, learn)
        _Training(task, learn, folder, config).run(clock, minutes, again=False)


def go_on(task: Task, folder: Path, max_time: str | None) -> None:
    """Take up a run that was interrupted, and train to its end; the folder is held by the caller.

    Raises:
        UsageError: if its settings or its data are not those that it began with.
    """
    from treadle.world import world

    clock = time.perf_counter()
    minutes = read_minutes(max_time)
    ended = world().on_main(lambda: _ended(folder))
    if ended == 0:
        report = printable(str(folder / "report.html"))
        print(f"The run is finished; there is nothing to go on with. Its report is {report}.")
        return
    if ended is not None:
        raise SystemExit(ended)
    learn = _make(task)
    config, again = world().on_main(lambda: _resumed(task, learn, folder))
    _greet(task, learn)
    _Training(task, learn, folder, config).run(clock, minutes, again)


def _started(task: Task, learn: Learner, folder: Path) -> dict[str, Any]:
    """Note that the run begins; gives its config."""
    from treadle.run.events import EventLog
    from treadle.run.restart import launcher

    _check_room(folder, learn, 2)
    config = describe(task, learn)
    _write_config(folder, config)
    EventLog(folder).append("started", updates=0, config=config, launcher=launcher())
    return config


def _resumed(task: Task, learn: Learner, folder: Path) -> tuple[dict[str, Any], bool]:
    """Note that the run goes on; gives its config, and whether there is a checkpoint."""
    from treadle.run.checkpoint import checkpoints
    from treadle.run.events import EventLog, read_events
    from treadle.run.restart import launcher

    config = describe(task, learn)
    begun = next((e["config"] for e in read_events(folder) if e["event"] == "started"), config)
    check_same(begun, config)
    _check_room(folder, learn, 1)
    environment, processes = config["environment"], config["processes"]
    EventLog(folder).append(
        "resumed", environment=environment, processes=processes, launcher=launcher()
    )
    return config, bool(checkpoints(folder / CHECKPOINTS))


def _ended(folder: Path) -> int | None:
    """The exit status of a run that is not to go on: it is finished, or it was left when that was
    asked of processes that torchrun has now started again, taking that for a failure."""
    from treadle.run.events import read_events
    from treadle.run.restart import launched_by, launcher
    from treadle.run.status import read_status

    if read_status(folder).state == "finished":
        return 0
    last = read_events(folder)[-1:]
    again = bool(launcher()) and launched_by(folder) == launcher()
    return int(last[0]["code"]) if again and last[0]["event"] == "left" else None


class _Training:
    """The training of a run, in its folder."""

    def __init__(
        self, task: Task, learn: Learner, folder: Path, config: Mapping[str, object]
    ) -> None:
        from treadle.run.events import EventLog

        self.task, self.learn, self.folder = task, learn, folder
        self.config, self.log = config, EventLog(folder)
        self.alone = processes() == 1

    def run(self, clock: float, minutes: float | None, again: bool) -> None:
        """Train or, `again`, resume; `clock` is when the command began."""
        from treadle.loop.signals import Preempted

        try:
            cbs = self._callbacks(minutes and max(minutes - (_since(clock) / 60), 1e-9))
            if again:
                self.learn.resume(self.folder / CHECKPOINTS, cbs)
            else:
                self.task.fit(self.learn, cbs)
        except (Preempted, KeyboardInterrupt) as left:
            # Between two fits, and in what comes before the first, Ctrl-C is a KeyboardInterrupt.
            self._leave(left if isinstance(left, Preempted) else Preempted(130, "SIGINT"))
            if self.alone or isinstance(left, Preempted):
                self._write_results(clock)
            raise
        except Exception as error:
            with suppress(Exception):  # the first error is the one to tell
                self.log.append("error", updates=self.learn.updates, error=_said(error))
                if self.alone:  # else who knows where the others are
                    self._write_results(clock)
            raise
        self._write_results(clock)
        self.log.append("finished", updates=self.learn.updates)

    def _callbacks(self, minutes: float | None) -> list[Any]:
        from treadle.callbacks import CheckpointCallback, CSVLogger, Every
        from treadle.callbacks.events_log import EventsLog
        from treadle.loop.signals import ENDING

        updates = self.task.args.checkpoint_every
        return [
            CSVLogger((self.folder / "history.csv").absolute(), append=True),
            EventsLog(self.folder),
            CheckpointCallback(
                Every(updates=updates, epochs=None if updates else 1),
                self.folder / CHECKPOINTS,
                signals=(*ENDING, signal.SIGINT),
                max_minutes=minutes,
            ),
        ]

    def _leave(self, left: Preempted) -> None:
        self.log.append("left", updates=self.learn.updates, reason=left.reason, code=left.code)
        told = _REASONS.get(left.code, left.reason)
        resume = f"{command()} resume {shlex.quote(str(self.folder))}"
        if rank() == 0:
            print(
                f"treadle: {told} ended the run; go on with: {printable(resume)}", file=sys.stderr
            )

    def _write_results(self, clock: float) -> None:
        """Weights, record and report of what was done; `history.csv` is there already."""
        from treadle.report import collect, write_report
        from treadle.run import write_record
        from treadle.run.weights import save_weights
        from treadle.world import world

        recorder = self.learn.recorder
        if not recorder.rows:
            return
        save_weights(self.learn.model, self.folder / "model.safetensors")
        began = world().on_main(self._started)
        record = collect(self.learn, self.task.name, shown(self.config), began)
        world().on_main(lambda: write_record(self.folder, record))
        world().on_main(lambda: write_report(record, self.folder / "report.html"))
        name, value = recorder.metric_names[-2], recorder.rows[-1][-2]
        shown_value = "none" if value is None else f"{value:.4f}"
        epochs = f"{len(recorder.rows)} epoch{'s' * (len(recorder.rows) != 1)}"
        print(f"{name} {shown_value} after {epochs}, {_since(clock):.0f} s in all")
        print(f"report   {printable(str(self.folder / 'report.html'))}")

    def _started(self) -> datetime:
        """When the run began, which may have been in another process; in local time."""
        from treadle.run.events import read_events

        first = datetime.fromisoformat(read_events(self.folder)[0]["time"])
        return first.astimezone().replace(tzinfo=None)


def describe(task: Task, learn: Learner) -> dict[str, Any]:
    """All that is needed to do it again, for config.json and the report."""
    from treadle.run import environment
    from treadle.run.folder import to_plain
    from treadle.world import world

    settings = asdict(task.args)
    for name in ("debug", "out", "max_time"):  # how it was run, not what
        del settings[name]
    settings["workers"] = learn.dls.train.num_workers
    settings["device"] = str(learn.device)
    settings["processes"] = world().size
    config = {
        "command": "train",
        **settings,
        **task.describe(learn),
        "parameters": sum(p.numel() for p in learn.model.parameters()),
        "environment": environment(learn.device),
    }
    return dict(to_plain(config, "config"))


def shown(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a person is to see of a config: not the machine, and nothing of several processes where
    there was one."""
    alone = config.get("processes", 1) == 1
    hidden = {"environment", *(_OF_SEVERAL if alone else ())}
    told = {name: value for name, value in config.items() if name not in hidden}
    return told if alone else {**told, "parallel": told.get("parallel") or "ddp"}


def check_same(begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UsageError that says what of a run is not as it was when it began."""
    # Runs of before there were several processes have none of the settings for these.
    begun = {"global_bs": begun.get("bs"), "sync_bn": False, **begun}
    names = [name for name in now if name not in _MAY_DIFFER and now[name] != begun.get(name)]
    if not names:
        return
    told = [f"{name} is {_short(now[name])} and was {_short(begun.get(name))}" for name in names]
    files = any(name.endswith("_files") for name in names)
    hint = " (files were added, removed, renamed or changed in size)" if files else ""
    raise UsageError(
        f"the run cannot go on, for it would not be the same run: {'; '.join(told)}{hint}. Put it "
        "back as it was, or start a new run with treadle train."
    )


def read_minutes(text: str | None) -> float | None:
    """The minutes that `--max-time` asks for: 90s, 30m, 2h, 1h30m, or a number of minutes.

    >>> read_minutes("90s"), read_minutes("1h30m"), read_minutes("2.5")
    (1.5, 90.0, 2.5)
    """
    if text is None:
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh]?)", text)
    whole = "".join(number + unit for number, unit in parts) == text
    if whole and parts and (len(parts) == 1 or all(unit for _, unit in parts)):
        minutes = sum(float(number) * _SECONDS[unit or "m"] for number, unit in parts) / 60
        if minutes > 0:
            return minutes
    raise UsageError(f"--max-time {text} cannot be read; write it as 90s, 30m, 2h, or in minutes.")


@contextmanager
def _new_folder(task: Task) -> Iterator[Path]:
    """The folder of a new run, held; it goes again if nothing was written into it."""
    from treadle.run.folder import HOLDER, LOCK, make_run_folder
    from treadle.run.lock import check_free, sole_writer

    if task.args.out is not None:
        check_free(task.args.out)  # else it would only be said that it is not empty
    folder = make_run_folder(task.name, task.args.out)
    try:
        with sole_writer(folder):
            if (folder / CONFIG).exists():  # of one that was faster
                raise DataError(f"The run folder {folder} is not empty; give a new one.")
            yield folder
    except BaseException:
        if not any(p.name not in (LOCK, HOLDER) for p in folder.iterdir()):
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        raise


def _greet(task: Task, learn: Learner) -> None:
    together = f" in {processes()} processes" if processes() > 1 else ""
    print(printable(task.greet(learn) + together))


def _make(task: Task) -> Learner:
    import torch

    torch.manual_seed(task.args.seed)
    return task.make_learner()


def _check_room(folder: Path, learn: Learner, checkpoints: int) -> None:
    """Refuse where so many checkpoints cannot fit: weights, gradients, two of the optimizer's."""
    from treadle.run.durable import room_for

    held = [*learn.model.parameters(), *learn.model.buffers()]
    size = sum(t.nbytes for t in held) + sum(3 * t.nbytes for t in held if t.requires_grad)
    with room_for(folder / CHECKPOINTS, checkpoints * size):
        pass


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    from treadle.run import write_json

    write_json(folder / CONFIG, config)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:1000]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _since(clock: float) -> float:
    return time.perf_counter() - clock
