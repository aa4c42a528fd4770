"""Runs trainings that are killed at random moments, and says what came of them.

`python killed.py FOLDER CASE KILLS SEED WORKERS...`: so many kills for each number of workers. A
run is a process of its own that trains, or resumes where there is a checkpoint; it is killed after
a random time, three times, and then left to end. Prints a JSON object: how many runs and kills
there were, the kills before the first checkpoint, and for each run whose outcome differs from that
of one without kills, in what.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from resume_cases import CASES, outcome

from treadle.callbacks import Every
from treadle.run.checkpoint import newest_checkpoint

KILLS_A_RUN = 3


def train(name: str, path: Path, workers: int, resume: bool) -> None:
    """In a child: the training, begun or resumed, and its outcome as a file."""
    learn = CASES[name].learner(path, seed=2 if resume else 1, workers=workers)
    with learn.no_logging():
        if resume:
            learn.resume()
        else:
            CASES[name].train(learn, checkpoint=Every(updates=2))
    done = path / "outcome.part"
    done.write_text(json.dumps(outcome(learn)))
    done.rename(path / "outcome.json")


def start(name: str, path: Path, workers: int) -> int:
    """The number of a new process, which has all imports behind it, with a group of its own."""
    resume = any((path / "checkpoints").glob("step-*"))
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        status = 1
        try:
            train(name, path, workers, resume)
            status = 0
        except BaseException as error:
            (path / "error.txt").write_text(f"{type(error).__name__}: {error}")
        finally:
            os._exit(status)
    return pid


def ended(pid: int, seconds: float) -> bool:
    """Whether the process has ended by itself within this time; else it is killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def run(
    name: str, path: Path, workers: int, seconds: float, drawn: random.Random
) -> tuple[int, int]:
    """The kills of one run, and those of them that came before there was a checkpoint."""
    path.mkdir()
    kills = early = 0
    while kills < KILLS_A_RUN and not (path / "outcome.json").exists():
        if not ended(start(name, path, workers), drawn.uniform(0.1, 1.0) * seconds):
            kills += 1
            early += newest_checkpoint(path / "checkpoints") is None
    if not (path / "outcome.json").exists():
        ended(start(name, path, workers), 120)
    return kills, early


def main() -> None:
    folder, name, wanted = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    drawn = random.Random(int(sys.argv[4]))
    (folder / "warm").mkdir()
    train(name, folder / "warm", 0, resume=False)  # what is imported and compiled late
    told = {"runs": 0, "kills": 0, "early": 0, "wrong": {}}
    for workers in map(int, sys.argv[5:]):
        (folder / f"workers-{workers}").mkdir()
        kill(folder / f"workers-{workers}", name, wanted, workers, drawn, told)
    print(json.dumps(told))


def kill(
    folder: Path, name: str, wanted: int, workers: int, drawn: random.Random, told: dict[str, Any]
) -> None:
    """At least `wanted` kills, in runs of three; adds what came of them to `told`."""
    (folder / "expected").mkdir()
    began = time.monotonic()
    ended(start(name, folder / "expected", workers), 120)
    seconds = time.monotonic() - began
    expected = json.loads((folder / "expected" / "outcome.json").read_text())
    goal = told["kills"] + wanted
    while told["kills"] < goal:
        path = folder / f"run-{told['runs']}"
        kills, early = run(name, path, workers, seconds, drawn)
        told["runs"], told["kills"] = told["runs"] + 1, told["kills"] + kills
        told["early"] += early
        found, error = path / "outcome.json", path / "error.txt"
        got = json.loads(found.read_text()) if found.exists() else {}
        differ = [part for part in expected if got.get(part) != expected[part]]
        if differ:
            said = error.read_text() if error.exists() else ""
            told["wrong"][f"{path.name}, {workers} workers"] = [*differ, said]


if __name__ == "__main__":
    main()
