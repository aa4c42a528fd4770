"""Trainings side by side: the same data, initial weights and order, another optimizer in each."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from treadle.callbacks.progress import Display, make_display
from treadle.errors import UsageError
from treadle.run import environment
from treadle.study.comparison import Comparison, Row, Run
from treadle.study.contestants import Contestant, Fit, check_arguments, read_rows
from treadle.study.kept import KeptRuns
from treadle.study.seeding import digest, own_chance
from treadle.study.training import Tell, Training, fresh, sentence
from treadle.study.verdict import listed


def compare(
    make_learner: Callable[[], Any],
    rows: Mapping[str, Any],
    seeds: int | Sequence[int] = 3,
    epochs: int = 3,
    lr: float | None = None,
    *,
    fit: Fit = "fit_one_cycle",
    each_finds_its_rate: bool = False,
    folder: str | os.PathLike[str] | None = None,
    title: str | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Comparison:
    """Train each of `rows` with each seed, and say which is best and by how much.

    With one seed all rows start from bit-equal weights and see the same batches in the same order.
    Nothing differs but what the row says. A training that diverges or raises is a result, kept
    with the reason. The random numbers of the caller are left as they were.

    Args:
        make_learner: gives a fresh learner at each call, with a new model; called with all
            generators seeded. The loaders may be new or the same: they are set to the seed and to
            their first epoch.
        rows: for each name what makes the optimizer (`SGD`, a `partial`, a class of torch's), or a
            dict with `opt_func`, `lr`, `fit`, and arguments of that fit (`moms`, `wd`, `cbs`, ...).
        seeds: how many (0, 1, 2, ...), or which.
        epochs: of each training.
        lr: the rate of the rows that give none; by default the learner's own.
        fit: of the rows that give none: "fit_one_cycle", "fit" (a constant rate), "fit_flat_cos",
            or a function `fit(learn, epochs, lr)`. If it fits several times, the last is recorded.
        each_finds_its_rate: each training begins with `lr_find`, whose suggestion is its rate; the
            learner is put back before it trains.
        folder: where each run that is done is kept. The same call goes on where an earlier one
            was interrupted. Functions are known by their names and numbers only: after a change
            inside one, use another folder.
        title, settings: for people, and in the report; other `settings` are another comparison.
        progress: show a bar, and a line for each run.

    Returns:
        A `Comparison`: a table when printed, `.plot()`, `.verdict()`, every curve.

    Raises:
        UsageError: for rows that cannot be meant or optimizers that cannot be built, before
            anything is trained; for a `make_learner` that does not start alike each time; for a
            `folder` that holds another comparison.

    >>> import torch
    >>> from treadle.all import SGD, DataLoaders, Learner, nn
    >>> x = torch.randn(64, 4)
    >>> batches = list(zip(x.split(16), x[:, :1].split(16)))
    >>> def make_learner():
    ...     return Learner(DataLoaders(batches, batches), nn.Linear(4, 1), nn.MSELoss())
    >>> rows = {"slow": {"opt_func": SGD, "lr": 1e-4}, "fast": {"opt_func": SGD, "lr": 0.1}}
    >>> found = compare(make_learner, rows, epochs=4, fit="fit", progress=False)
    >>> found.verdict()[0].startswith("fast has the best valid loss")
    True
    """
    study = _Study(make_learner, read_rows(rows, lr, fit), _read_seeds(seeds), epochs)
    study.each_finds_its_rate = each_finds_its_rate
    started = datetime.now().isoformat(timespec="seconds")
    with own_chance():
        study.look(title, settings or {})
        study.kept = KeptRuns(Path(folder) if folder else None, study.settings, study.described)
        try:
            study.train_all(progress)
        finally:  # what an interrupted comparison has is worth a look
            found = study.result(started)
            study.kept.put_comparison(found)
    return found


def _read_seeds(seeds: int | Sequence[int]) -> list[int]:
    found = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not found or len(set(found)) < len(found):
        raise UsageError(f"compare got seeds={seeds!r}; give how many, from 1 on, or which.")
    return found


@dataclass
class _Study:
    """A comparison under way."""

    make_learner: Callable[[], Any]
    contestants: list[Contestant]
    seeds: list[int]
    epochs: int
    each_finds_its_rate: bool = False
    kept: KeptRuns = field(init=False)
    title: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    described: dict[str, str] = field(default_factory=dict)
    runs: dict[tuple[str, int], Run] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    metric_names: list[str] = field(default_factory=list)
    updates: int = 0  # of one run
    ready: set[str] = field(default_factory=set)  # the rows that had their glimpse

    # Before anything is trained

    def look(self, title: str | None, settings: Mapping[str, Any]) -> None:
        """Build each row once: what cannot be built is an error now, not after hours."""
        if self.epochs < 1:
            raise UsageError(f"compare got epochs={self.epochs}; give 1 or more.")
        learn = fresh(self.make_learner, self.seeds[0])
        opt_func, lr = learn.opt_func, learn.lr
        for contestant in self.contestants:
            check_arguments(contestant, learn)
            learn.opt_func, learn.lr = opt_func, lr
            try:
                contestant.dress(learn)
            except Exception as error:
                raise UsageError(
                    f"the row {contestant.name!r} cannot be built: {sentence(error)}"
                ) from error
            self.described[contestant.name] = contestant.describe(learn)
        self.metric_names = learn.recorder.metric_names[1:-1]
        self.updates = self.epochs * len(learn.dls.train)
        self.environment = environment(learn.device)
        size = sum(p.numel() for p in learn.model.parameters())
        names = [contestant.name for contestant in self.contestants]
        self.title = title or f"Comparison of {listed(names)}"
        self.settings = {
            **settings,
            "epochs": self.epochs,
            "updates": self.updates,
            "parameters": size,
            "precision": learn.precision.name,
            "device": str(learn.device or "cpu"),
            "each finds its rate": self.each_finds_its_rate,
        }

    # Training

    def train_all(self, progress: bool) -> None:
        """All runs that are not kept yet: each row with the first seed, then with the next."""
        pairs = [(contestant, seed) for seed in self.seeds for contestant in self.contestants]
        for contestant, seed in pairs:
            run = self.kept.get(contestant.name, seed)
            if run is not None:
                self.runs[contestant.name, seed] = run
        todo = [(c, seed) for c, seed in pairs if (c.name, seed) not in self.runs]
        with ExitStack() as stack:
            lines = _Lines(self, len(pairs)) if progress and todo else None
            if lines is not None:
                stack.callback(lines.display.close)
            for contestant, seed in todo:
                tell = None if lines is None else lines.begin(contestant.name, seed)
                run = self.train(contestant, seed, tell)
                self.runs[contestant.name, seed] = run
                if lines is not None:
                    lines.end(contestant.name, run)

    def train(self, contestant: Contestant, seed: int, tell: Tell | None) -> Run:
        """One run; it is kept unless it raised."""
        training = Training(contestant, self.epochs, self.each_finds_its_rate, seed)
        if contestant.name not in self.ready:
            training.glimpse(fresh(self.make_learner, seed))
            self.ready.add(contestant.name)
        learn = fresh(self.make_learner, seed)
        start = digest(learn.model)
        self.check_start(start, contestant.name, seed)
        run = training.run(learn, tell, start)
        if training.raised is None:
            self.kept.put(contestant.name, run)
        return run

    def check_start(self, mine: str, name: str, seed: int) -> None:
        """The weights at the start must be the same in all rows."""
        for (other, of_seed), run in self.runs.items():
            if of_seed == seed and run.initial_weights != mine:
                raise UsageError(
                    f"with seed {seed} the row {name!r} starts from other weights than {other!r} "
                    "did; make_learner must build a new model at each call, from torch's global "
                    "generator. If it was changed since the kept runs were made, use another "
                    "folder."
                )

    # What was found

    def result(self, started: str) -> Comparison:
        """The comparison as far as it has come."""
        rows = [
            Row(
                contestant.name,
                self.described[contestant.name],
                [
                    self.runs[contestant.name, s]
                    for s in self.seeds
                    if (contestant.name, s) in self.runs
                ],
            )
            for contestant in self.contestants
        ]
        return Comparison(
            title=self.title,
            settings=self.settings,
            metric_names=self.metric_names,
            rows=rows,
            seeds=self.seeds,
            environment=self.environment,
            started=started,
        )


class _Lines:
    """A bar over all runs, and a line for each that ends."""

    def __init__(self, study: _Study, total: int) -> None:
        self.study, self.total = study, total
        self.display: Display = make_display()
        self.width = max(len(c.name) for c in study.contestants)
        self.display.row(["row".ljust(self.width), "seed", *study.metric_names, "time"])

    def begin(self, name: str, seed: int) -> Tell:
        """What is to be called while the run of `name` is under way."""
        study, done = self.study, len(self.study.runs) * self.study.updates

        def tell(updates: int, epoch: int) -> None:
            text = f"{name}, seed {seed}, epoch {epoch + 1}/{study.epochs}"
            self.display.bar(done + updates, self.total * study.updates, text)

        tell(0, 0)
        return tell

    def end(self, name: str, run: Run) -> None:
        """The line of a run."""
        values = [run.value(column) for column in self.study.metric_names]
        self.display.row([name.ljust(self.width), run.seed, *values, run.total_seconds])
