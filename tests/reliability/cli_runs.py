"""Ends `treadle train` by signals and by time, resumes it, and says what came of it.

`python cli_runs.py FOLDER`: each command runs in a process of its own, forked when all imports are
done. Prints a JSON object: for each case its exit statuses, what it said, and its outcome.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from PIL import Image

import treadle.report  # which brings what a training imports late
from treadle.cli.main import run
from treadle.run.events import read_events

SMALL = "--size 32 --presize 32 --bs 8 --arch shufflenet_v2_x0_5 --workers 0 --device cpu".split()
TRAIN = ["train", "images", *SMALL, "--epochs", "8", "--checkpoint-every", "5"]
assert torchvision.models and treadle.report  # imported once, and not by each process anew
PASSING = ("time", "started", "times")  # that no two runs have alike


def write_images(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for part, n in (("train", 24), ("val", 8)):
        for name, channel in (("red", 0), ("blue", 2)):
            (folder / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = draw.integers(0, 200, (32, 40, 3), dtype=np.uint8)
                pixels[..., channel] += 40
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")


class Command:
    """`treadle` with these arguments, in a process of its own."""

    def __init__(self, name: str, *argv: str) -> None:
        self.said = Path(f"{name}.txt")
        self.pid = os.fork()
        if self.pid == 0:
            with self.said.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            status = 99
            try:
                status = run(list(argv))
                sys.stdout.flush()
            finally:
                os._exit(status)

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def wait_for(lines: int, folder: str) -> None:
    """Until the run has so many events."""
    while len(read_events(folder)) < lines:
        time.sleep(0.001)


def interrupted(number: int, times: int = 1) -> Callable[[str], list[int]]:
    """A run that gets a signal so many times, at an event later each time, and is then resumed."""

    def work(name: str) -> list[int]:
        statuses = []
        for k in range(times):
            argv = ["resume", name] if k else [*TRAIN, "--out", name]
            command = Command(name, *argv)
            wait_for(6 + 6 * k, name)
            os.kill(command.pid, number)
            statuses.append(command.status())
        return [*statuses, Command(name, "resume", name).status()]

    return work


def limited(name: str) -> list[int]:
    first = Command(name, *TRAIN, "--out", name, "--max-time", "0.01s").status()
    return [first, Command(name, "resume", name, "--max-time", "2h").status()]


def whole(name: str) -> list[int]:
    return [Command(name, *TRAIN, "--out", name).status()]


CASES: dict[str, Callable[[str], list[int]]] = {
    "whole": whole,
    "kill": interrupted(signal.SIGKILL, times=2),
    "term": interrupted(signal.SIGTERM),
    "ctrl-c": interrupted(signal.SIGINT),
    "limit": limited,
}


def outcome(folder: Path) -> dict[str, Any]:
    """What a run must share with every other one of the same settings."""
    record = json.loads((folder / "record.json").read_text())
    seconds = record["metric_names"].index("time")
    for row in record["rows"]:
        del row[seconds]
    lines = (folder / "history.csv").read_text().splitlines()
    return {
        "model": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "history": [line.rsplit(",", 1)[0] for line in lines],
        "record": {name: value for name, value in record.items() if name not in PASSING},
    }


def main() -> None:
    os.chdir(sys.argv[1])
    write_images(Path("images"))
    told = {}
    for name, work in CASES.items():
        statuses = work(name)
        found = outcome(Path(name)) if (Path(name) / "record.json").exists() else {}
        if name == "whole":
            expected = found
        told[name] = {
            "statuses": statuses,
            "said": Path(f"{name}.txt").read_text(),
            "differs": [part for part in expected if found.get(part) != expected[part]],
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
