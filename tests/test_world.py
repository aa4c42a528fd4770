"""What processes tell one another."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from ranks import on_ranks, outcomes

from treadle.errors import DataError, RankError
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
    import os

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
