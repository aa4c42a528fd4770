"""What processes tell one another."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from datetime import timedelta

import numpy as np
import pytest
import torch

from ranks import on_ranks, outcomes
from treadle.errors import DataError, RankError, UsageError
from treadle.world import World, world


def test_a_process_by_itself_is_alone():
    assert world() == World(0, 1) and world().is_main
    assert world().all("x") == ["x"] and world().same("y") == "y"
    assert world().on_main(lambda: 3) == 3


def _talk():
    w = world()
    return (w.rank, w.size, w.is_main, w.all(w.rank * 10), w.same(w.rank), w.on_main(lambda: "m"))


def test_processes_that_torchrun_started_find_one_another():
    assert on_ranks(3, _talk) == [(r, 3, r == 0, [0, 10, 20], 0, "m") for r in range(3)]


def _draw():
    torch.manual_seed(int.from_bytes(random.randbytes(4), "little"))  # differs, as at a start
    world()
    return torch.rand(1).item(), np.random.rand(), random.random(), torch.initial_seed()


def _draw_apart(seed):
    random.seed(seed + int(os.environ["RANK"]))
    return _draw()


def test_from_the_meeting_on_all_draw_the_same():
    first, second = on_ranks(2, _draw_apart, 5)
    assert first == second


def _fail(kind):
    world().on_main(lambda: (_ for _ in ()).throw(kind("the disk is full")))


@pytest.mark.parametrize(("kind", "others"), [(DataError, DataError), (OSError, RankError)])
def test_what_the_main_process_raises_all_raise(kind, others):
    (main, first), (other, second) = outcomes(2, _fail, kind)
    assert main == other == "raised"
    assert kind.__name__ in first and "the disk is full" in first
    assert others.__name__ in second and "the disk is full" in second


# Meeting


def _meet():
    """How it went, and in how many seconds."""
    began = time.monotonic()
    try:
        told = f"met {world().size}"
    except (RankError, UsageError) as error:
        told = f"{type(error).__name__}: {error}"
    return told, time.monotonic() - began


def _met(n, wait=20, **env):
    return [what for _, what in outcomes(n, _meet, wait=wait, **env)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 cannot be with WORLD_SIZE=2; ranks go from 0"),
        ({"RANK": "-1"}, "RANK='-1' cannot be meant; torchrun gives a number from 0 on"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' cannot be meant"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0' cannot be meant; torchrun gives a number from 1"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT='99999' cannot be meant"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is not set, though TORCHELASTIC_RUN_ID says"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"TREADLE_TIMEOUT": "soon"}, "TREADLE_TIMEOUT='soon' cannot be meant"),
    ],
)
def test_variables_that_cannot_be_meant(given, said):
    [(told, seconds)] = _met(1, **given)
    assert told.startswith(f"UsageError: {said}") and seconds < 2


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        first, second = _met(2, MASTER_PORT=port, TREADLE_TIMEOUT="1")
    assert first[0].startswith(f"RankError: port {port} is in use by another program")
    # What listens there never answers.
    assert second[0].startswith(f"RankError: rank 1 found nobody at 127.0.0.1:{port} within 1 s")
    assert first[1] < 1 and second[1] < 3


def test_an_address_that_nobody_has():
    env = {"MASTER_ADDR": "no-such-machine.invalid", "TREADLE_TIMEOUT": "1"}
    for told, seconds in _met(2, **env):
        assert told.startswith("RankError: MASTER_ADDR='no-such-machine.invalid' is the name of no")
        assert seconds < 4


def test_one_that_does_not_come():
    """Both that do are told who it is."""
    for told, seconds in _met(2, WORLD_SIZE="4", TREADLE_TIMEOUT="1"):
        assert told.startswith("RankError: ranks 2 and 3 did not come to 127.0.0.1:")
        assert seconds < 4


def test_rank_0_that_does_not_come():
    [(told, seconds)] = _met(1, RANK="1", WORLD_SIZE="2", TREADLE_TIMEOUT="1")
    assert told.startswith("RankError: rank 1 found nobody at") and seconds < 4


def _meet_as(numbers):
    rank, size = numbers[int(os.environ["RANK"])]
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))
    return _meet()[0]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([(0, 2), (1, 3)], ["RankError: rank 0 was told WORLD_SIZE=2 and rank 1 3"] * 2),
        ([(0, 2), (0, 2)], ["RankError: port", "RankError: rank 1 did not come"]),
    ],
)
def test_numbers_that_do_not_fit_together(numbers, said):
    told = [what for _, what in outcomes(2, _meet_as, numbers, TREADLE_TIMEOUT="1")]
    starts = [text[: len(start)] for text, start in zip(sorted(told), said, strict=True)]
    assert starts == said


def test_a_run_that_is_started_again_at_the_same_store():
    """As torchrun does: what was written by the processes before is still there."""
    store = torch.distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=9)
    )
    env = {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for _ in range(3):
        assert [told for told, _ in _met(2, **env)] == ["met 2", "met 2"]


def _start_helper():
    os.environ["TREADLE_JOINED"] = "test 1"  # as a process of this run has it that is rank 0
    return world()


def test_a_process_that_one_of_the_run_starts_is_none_of_the_run():
    assert on_ranks(1, _start_helper) == [World()]


def _interrupt():
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    world()


def test_ctrl_c_ends_the_wait_for_the_others():
    [(ended, told)] = outcomes(1, _interrupt, WORLD_SIZE="2")
    assert ended == "raised" and "KeyboardInterrupt" in told
