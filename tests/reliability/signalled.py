"""Sends signals to trainings at random moments, and says what came of them.

`python signalled.py FOLDER SIGNALS SEED`: a run is a process of its own that trains, or resumes
where there is a checkpoint; it gets a signal at a random moment, three times, and is then left to
end. Prints a JSON object: how many `runs` and `signals` there were, the longest time to `leave` in
seconds, and what was `wrong`.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from resume_cases import CASES, outcome

from treadle.callbacks import Every
from treadle.loop import Callback

SIGNALS_A_RUN = 3
SIGNALS = [signal.SIGTERM, signal.SIGUSR1]
NAMES = ["everything", "schedule_free", "torch", "fine_tune", "lookahead"]
RARELY = Every(updates=1000)  # so that the checkpoint is the one that the signal asked for


class Signalled:
    """A training in a folder of its own, in one process after the other."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.begun = mmap.mmap(-1, 1)  # shared with the child: whether it may get a signal
        path.mkdir()

    def train(self) -> None:
        """In a child: the training, begun or resumed, and its outcome as a file."""
        resume = any((self.path / "checkpoints").glob("step-*"))
        learn = CASES[self.name].learner(self.path, seed=2 if resume else 1)
        learn.add_cb(Callback(before_epoch=self.begin, after_fit=self.begin))
        for number in SIGNALS:
            signal.signal(number, too_late)
        try:
            with learn.no_logging():
                if resume:
                    learn.resume()
                else:
                    CASES[self.name].train(learn, checkpoint=RARELY)
        finally:
            if any(signal.getsignal(number) is not too_late for number in SIGNALS):
                raise RuntimeError("the handlers are not those of before")
        (self.path / "outcome.part").write_text(json.dumps(outcome(learn)))
        (self.path / "outcome.part").rename(self.path / "outcome.json")

    def begin(self, _: Callback) -> None:
        self.begun[0] = 1

    def start(self) -> int:
        """The number of a new process, which has all imports behind it."""
        self.begun[0] = 0
        pid = os.fork()
        if pid == 0:
            status: Any = 1
            try:
                self.train()
                status = 0
            except SystemExit as left:
                status = left.code
            except BaseException as error:
                (self.path / "error.txt").write_text(f"{type(error).__name__}: {error}")
            finally:
                os._exit(status)
        while not self.begun[0]:
            time.sleep(0.001)
        return pid

    def outcome(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.path / "outcome.json").read_text())
        return found

    def wrong(self, expected: dict[str, str]) -> list[str]:
        """In what its outcome is another than expected."""
        if not (self.path / "outcome.json").exists():
            return [f"{self.path.name}: {(self.path / 'error.txt').read_text()}"]
        got = self.outcome()
        return [f"{self.path.name}: {part}" for part in expected if got[part] != expected[part]]


def too_late(number: int, frame: object) -> None:
    """What hears a signal when the fit is over."""


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def send(run: Signalled, number: int, seconds: float, told: dict[str, Any]) -> bool:
    """Starts the run and sends it a signal after this time. Gives whether it has come to its end,
    which it may before there was a signal, and while there was none to hear it any more."""
    pid = run.start()
    time.sleep(seconds)
    began = time.monotonic()
    os.kill(pid, number)
    status = status_of(pid)
    if (run.path / "outcome.json").exists():
        return True
    told["signals"] += 1
    told["leave"] = max(told["leave"], time.monotonic() - began)
    if status != 128 + number:
        told["wrong"].append(f"{run.path.name}: status {status} after signal {number}")
    return False


def main() -> None:
    folder, wanted = Path(sys.argv[1]), int(sys.argv[2])
    drawn = random.Random(int(sys.argv[3]))
    expected, seconds = {}, {}
    for name in NAMES:
        Signalled(name, folder / f"warm-{name}").train()  # what is imported and compiled late
        run = Signalled(name, folder / name)
        pid, began = run.start(), time.monotonic()
        status_of(pid)
        seconds[name] = time.monotonic() - began
        expected[name] = run.outcome()
    told: dict[str, Any] = {"runs": 0, "signals": 0, "leave": 0.0, "wrong": []}
    while told["signals"] < wanted:
        name = NAMES[told["runs"] % len(NAMES)]
        run = Signalled(name, folder / f"run-{told['runs']}-{name}")
        done = False
        for k in range(SIGNALS_A_RUN):
            after = drawn.uniform(0, 0.7) * seconds[name]
            done = done or send(run, SIGNALS[(told["runs"] + k) % 2], after, told)
        if not done:
            status_of(run.start())
        told["runs"] += 1
        told["wrong"] += run.wrong(expected[name])
    print(json.dumps(told))


if __name__ == "__main__":
    main()
