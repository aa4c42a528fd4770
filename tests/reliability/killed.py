"""Runs trainings that are killed at random moments, and says what came of them.

`python killed.py FOLDER CASE KILLS WORKERS SEED`. A run is a process of its own that trains, or
resumes where there is a checkpoint; it is killed after a random time, three times, and then left
to end. Prints a JSON object: how many runs and kills there were, the kills before the first
checkpoint, and for each run whose outcome differs from that of one without kills, in what.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

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


def run(name: str, path: Path, workers: int, seconds: float, drawn: random.Random) -> list[int]:
    """The kills of one run, and those of them that came before there was a checkpoint."""
    path.mkdir()
    kills = early = 0
    while kills < KILLS_A_RUN and not (path / "outcome.json").exists():
        if not ended(start(name, path, workers), drawn.uniform(0.1, 1.0) * seconds):
            kills += 1
            early += newest_checkpoint(path / "checkpoints") is None
    if not (path / "outcome.json").exists():
        ended(start(name, path, workers), 120)
    return [kills, early]


def main() -> None:
    folder, name, wanted, workers, seed = (
        kind(a) for kind, a in zip(TYPES, sys.argv[1:], strict=True)
    )
    drawn = random.Random(seed)
    (folder / "warm").mkdir()
    train(name, folder / "warm", 0, resume=False)  # what is imported and compiled late
    (folder / "expected").mkdir()
    began = time.monotonic()
    ended(start(name, folder / "expected", workers), 120)
    seconds = time.monotonic() - began
    expected = json.loads((folder / "expected" / "outcome.json").read_text())
    kills = early = runs = 0
    wrong = {}
    while kills < wanted:
        path = folder / f"run-{runs}"
        killed, too_early = run(name, path, workers, seconds, drawn)
        kills, early, runs = kills + killed, early + too_early, runs + 1
        found = path / "outcome.json"
        got = json.loads(found.read_text()) if found.exists() else {}
        differ = [part for part in expected if got.get(part) != expected[part]]
        if differ:
            error = path / "error.txt"
            wrong[path.name] = [*differ, error.read_text() if error.exists() else ""]
    print(json.dumps({"runs": runs, "kills": kills, "early": early, "wrong": wrong}))


TYPES = (Path, str, int, int, int)

if __name__ == "__main__":
    main()
