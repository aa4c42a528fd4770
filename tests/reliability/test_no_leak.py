"""Many short epochs and many short fits leave nothing behind: memory, files, threads, children."""

from __future__ import annotations

import gc
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from resume_cases import CASES

from treadle.callbacks import Every, SaveModelCallback, SkipNonFinite
from treadle.loop import Callback

EPOCHS, WARM_UP = 60, 20
MB_AN_EPOCH = 0.1

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


class Held(Callback):
    """What this process holds, in the middle of each epoch."""

    reports = True
    state_names = ()

    def __init__(self):
        self.rows = []

    def before_validate(self):
        gc.collect()
        status = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        self.rows.append(
            {
                "memory": int(status["VmRSS"].split()[0]) / 1024,
                "files": count("/proc/self/fd"),
                "threads": int(status["Threads"]),
                "threads of Python": threading.active_count(),
                "children": len(children()),
                "shared memory": count("/dev/shm"),
            }
        )


def count(folder):
    return sum(1 for _ in Path(folder).iterdir())


def children():
    found = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            found += (task / "children").read_text().split()
    return found


@pytest.fixture
def _quick_collections():
    """What is there before the test is not looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_quick_collections")
@pytest.mark.parametrize(("fits", "workers"), [(1, 2), (EPOCHS // 2, 0)])
def test_nothing_is_left_behind(fits, workers, tmp_path):
    """Validation, EMA, MixUp, accumulation, mixed precision, checkpoints, best weights, a CSV."""
    held = Held()
    learn = CASES["everything"].learner(tmp_path, seed=1, workers=workers)
    learn.add_cbs([held, SaveModelCallback(), SkipNonFinite()])
    with learn.no_logging():
        for _ in range(fits):
            learn.fit_one_cycle(EPOCHS // fits, 0.02, checkpoint=Every(epochs=2))
    rows = held.rows[WARM_UP:]
    assert len(rows) == EPOCHS - WARM_UP
    for name in rows[0].keys() - {"memory"}:
        # A checkpoint that is being written comes and goes; what is left behind raises the floor.
        half = len(rows) // 2
        early, late = ({row[name] for row in part} for part in (rows[:half], rows[half:]))
        assert min(late) <= min(early), (name, [row[name] for row in held.rows])
    slope = np.polyfit(range(len(rows)), [row["memory"] for row in rows], 1)[0]
    assert slope <= MB_AN_EPOCH, [round(row["memory"], 1) for row in held.rows]
