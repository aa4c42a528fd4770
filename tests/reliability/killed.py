"""Runs trainings that are killed at random moments, and says what came of them.

`python killed.py FOLDER CASE,CASE WORKERS RUNS KILLS SEED`: at least so many runs with at least so
many kills in all. A run is a process of its own that trains, or resumes where there is a
checkpoint. It is killed with its whole group after a random time, up to four times, and then left
to end. What comes out must be, bit for bit, what comes out of a run that was never killed and never
wrote a checkpoint. Prints a JSON object, the `Tally`.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resume_cases import CASES, outcome

from treadle.callbacks import Every
from treadle.loop import Callback
from treadle.run.checkpoint import newest_checkpoint

KILLS_A_RUN = 4
RUNS_A_MEASURE = 10
EVERY = [Every(minutes=1e-9), Every(updates=1), Every(updates=2)]  # the first: after each batch
STARTING, BETWEEN, MID_EPOCH, IN_WINDOW = range(4)


@dataclass
class Tally:
    """What was done and found: `kills` counts by moment, `wrong` says of each run that differs from
    one that was never killed in what."""

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count in what another process found."""
        self.runs += other.runs
        self.kills += other.kills
        self.wrong += other.wrong

    def share(self, moment: str) -> float:
        """Which part of the kills came at this kind of moment."""
        return self.kills[moment] / self.kills["all"]


class Place(Callback):
    """Says to the process that kills this one where the training is."""

    run_valid = False
    state_names = ()

    def __init__(self, shared: mmap.mmap) -> None:
        self.shared = shared

    def after_batch(self):
        window = self.learn.window
        if window is not None and not window.closed:
            self.shared[0] = IN_WINDOW
        else:
            self.shared[0] = MID_EPOCH if self.iter + 1 < self.n_iter else BETWEEN


class Run:
    """A training in a folder of its own, in one process after the other."""

    def __init__(self, name: str, path: Path, workers: int, every: Every | None) -> None:
        self.name, self.path, self.workers, self.every = name, path, workers, every
        self.place = mmap.mmap(-1, 1)  # shared with the children
        path.mkdir()

    @property
    def is_done(self) -> bool:
        return (self.path / "outcome.json").exists()

    @property
    def outcome(self) -> dict[str, str]:
        """What came out; nothing if it ended otherwise."""
        if not self.is_done:
            return {}
        found: dict[str, str] = json.loads((self.path / "outcome.json").read_text())
        return found

    def train(self, resume: bool) -> None:
        """In a child: the training, begun or resumed, and its outcome as a file."""
        learn = CASES[self.name].learner(self.path, seed=2 if resume else 1, workers=self.workers)
        learn.add_cb(Place(self.place))
        with learn.no_logging():
            if resume:
                learn.resume()
            else:
                CASES[self.name].train(learn, checkpoint=self.every)
        done = self.path / "outcome.part"
        done.write_text(json.dumps(outcome(learn)))
        done.rename(self.path / "outcome.json")

    def start(self) -> tuple[int, bool]:
        """The number of a new process, with a group of its own, and whether it is to resume. It has
        all imports behind it."""
        resume = any((self.path / "checkpoints").glob("step-*"))
        self.place[0] = STARTING
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setpgid(0, 0)
                self.train(resume)
                status = 0
            except BaseException as error:
                (self.path / "error.txt").write_text(f"{type(error).__name__}: {error}")
            finally:
                os._exit(status)
        with contextlib.suppress(OSError):  # the child was quicker, or is gone
            os.setpgid(pid, pid)
        return pid, resume

    def kill(self, seconds: float) -> Counter[str]:
        """Starts a process and kills it and all of its own after this time; counts what of. Nothing
        if it ended before."""
        pid, resumed = self.start()
        if ended(pid, seconds):
            return Counter()
        folder = self.path / "checkpoints"
        found = {
            "all": True,
            "before the first checkpoint": newest_checkpoint(folder) is None,
            "in mid-epoch": self.place[0] in (MID_EPOCH, IN_WINDOW),
            "in an open window": self.place[0] == IN_WINDOW,
            "while a checkpoint was written or removed": any(folder.glob(".*.part")),
            "of a process that had resumed": resumed,
            "while it resumed": resumed and self.place[0] == STARTING,
        }
        return Counter(moment for moment, true in found.items() if true)

    def finish(self) -> float:
        """Lets it train to its end; gives the seconds that took."""
        began = time.monotonic()
        if not ended(self.start()[0], 120):
            (self.path / "error.txt").write_text("it had not ended after 120 s")
        return time.monotonic() - began

    def differs(self, expected: dict[str, str]) -> str:
        """In what its outcome is another than expected, and why if it says so; "" if it is not."""
        got, error = self.outcome, self.path / "error.txt"
        parts = [part for part in expected if got.get(part) != expected[part]]
        said = f" ({error.read_text()})" if parts and error.exists() else ""
        return ", ".join(parts) + said


def ended(pid: int, seconds: float) -> bool:
    """Whether the process has ended by itself within this time; else it is killed."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(min(left, 0.002))
    with contextlib.suppress(OSError):  # it is gone
        os.killpg(pid, signal.SIGKILL)
    return not os.WIFSIGNALED(os.waitpid(pid, 0)[1])


class Case:
    """The runs of one case, and what each of them must bring out."""

    def __init__(self, folder: Path, name: str, workers: int) -> None:
        self.folder, self.name, self.workers = folder / name, name, workers
        self.folder.mkdir()
        self.runs, self.seconds = 0, 0.0
        self.run("warm", None).train(resume=False)  # what is imported and compiled late
        whole = self.run("whole", None)
        whole.finish()
        self.expected = whole.outcome
        if not self.expected:
            raise RuntimeError(f"{name}, which nobody killed{whole.differs({'': ''})}")

    def run(self, name: str, every: Every | None) -> Run:
        return Run(self.name, self.folder / name, self.workers, every)

    def kill_one(self, drawn: random.Random, tally: Tally) -> None:
        """One run more, and what came of it."""
        every = EVERY[self.runs % len(EVERY)]
        if self.runs % RUNS_A_MEASURE == 0:  # how long it takes now
            self.seconds = self.run(f"measure-{self.runs}", every).finish()
        run = self.run(f"run-{self.runs}", every)
        for _ in range(KILLS_A_RUN):
            if not run.is_done:
                tally.kills += run.kill(drawn.uniform(0, self.seconds))
        if not run.is_done:
            run.finish()
        self.runs += 1
        tally.runs += 1
        if said := run.differs(self.expected):
            tally.wrong.append(f"{run.path.name}, {self.workers} workers, {every}: {said}")


def kill_runs(
    folder: Path, names: Sequence[str], workers: int, runs: int, kills: int, seed: int
) -> Tally:
    """So many runs, of the cases by turns, and more until there are so many kills."""
    drawn, tally = random.Random(seed), Tally()
    cases = [Case(folder, name, workers) for name in names]
    while tally.runs < runs or tally.kills["all"] < kills:
        cases[tally.runs % len(cases)].kill_one(drawn, tally)
    return tally


def in_processes(
    folder: Path, names: Sequence[str], workers: int, runs: int, kills: int, seeds: Sequence[int]
) -> Tally:
    """The same, shared by as many processes as there are seeds, each with one thread of torch's."""
    started = []
    for seed in seeds:
        mine = folder / f"{'-'.join(names)}-{workers}-{seed}"
        mine.mkdir()
        counts = [workers, -(-runs // len(seeds)), -(-kills // len(seeds)), seed]
        given = [sys.executable, __file__, str(mine), ",".join(names), *map(str, counts)]
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # a forked process waits for those it lacks
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(given, env=alone, stdout=pipe, stderr=pipe, text=True))
    tally = Tally()
    for process in started:
        out, err = process.communicate()
        if process.returncode:
            tally.wrong.append(f"{names}: the process that kills failed: {err}")
        else:
            told = json.loads(out.splitlines()[-1])
            tally.add(Tally(told["runs"], Counter(told["kills"]), told["wrong"]))
    return tally


def main() -> None:
    folder, names, *counts = sys.argv[1:]
    warnings.simplefilter("error")  # a checkpoint that is passed over is one that is damaged
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)  # a fork beside threads
    print(json.dumps(vars(kill_runs(Path(folder), names.split(","), *map(int, counts)))))


if __name__ == "__main__":
    main()
