"""One, two and four processes that train on the same global batches end with the same numbers."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ranks import on_ranks
from treadle.callbacks import GradientAccumulation
from treadle.data import DataLoaders
from treadle.learner import Learner
from treadle.loop.events import Callback
from treadle.metrics import RocAuc, accuracy
from treadle.optim import SGD, Adam

N, GLOBAL_BS, EPOCHS = 192, 10, 5  # the last batch has 2 samples: two of four processes get none
UPDATES = 100


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 17), nn.Tanh(), nn.Linear(17, 3)
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)),
        *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(20, 3)),
    )


NETS = {"mlp": mlp, "cnn": cnn}
OPTS = {"momentum": partial(SGD, mom=0.9), "adam": partial(Adam, wd=0.01)}
RATES = {
    "momentum": 0.02,
    "adam": 0.004,
}  # at higher ones float32's rounding grows from step to step
CASES = [
    ("mlp", "momentum", "ddp", 0),
    ("mlp", "adam", "fsdp", 0),
    ("cnn", "adam", "ddp", 0),
    ("cnn", "momentum", "fsdp", 0),
    ("mlp", "adam", "ddp", 25),
    ("mlp", "momentum", "fsdp", 25),
]
"""Net, optimizer, strategy, and how many samples are gathered for a step (0: those of a batch)."""


class Ids(Callback):
    """The samples of each batch that are this process's to count."""

    run_valid = False

    def before_fit(self) -> None:
        self.seen: list[list[int]] = []

    def after_batch(self) -> None:
        dl = self.learn.dl
        self.seen.append([] if dl.borrowed else dl.indices.tolist())


def learner(net: str, opt: str, parallel: str, gathered: int) -> Learner:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(N + 33, 16, generator=generator)
    y = (x[:, :3] + 0.3 * torch.randn(len(x), 3, generator=generator)).argmax(1)
    train, valid = (
        torch.utils.data.TensorDataset(x[part], y[part]) for part in (slice(N), slice(N, None))
    )
    dls = DataLoaders.from_dsets(
        train, valid, global_bs=GLOBAL_BS, drop_last=False, num_workers=0, device="cpu", seed=3
    )
    torch.manual_seed(1)
    cbs = [Ids(), *([GradientAccumulation(gathered)] if gathered else [])]
    return Learner(
        *(dls, NETS[net](), nn.CrossEntropyLoss(), OPTS[opt]),
        **{"lr": RATES[opt], "metrics": [accuracy, RocAuc()], "cbs": cbs, "parallel": parallel},
    )


def whole(p: Any) -> Any:
    """A parameter as NumPy has it, on each process."""
    return (p.full_tensor() if isinstance(p, DTensor) else p).detach().numpy().copy()


def trained(case: tuple[str, str, str, int]) -> dict[str, Any]:
    learn = learner(*case)
    with learn.no_logging():
        learn.fit(EPOCHS)
    preds, targets = learn.get_preds()
    return {
        "weights": {name: whole(p) for name, p in learn.model.named_parameters()},
        "ids": learn.ids.seen,
        "losses": np.array(learn.recorder.raw_losses),
        "values": np.array(learn.recorder.values, np.float64),
        "preds": preds.numpy().copy(),
        "targets": targets.numpy().copy(),
        "updates": learn.updates,
    }


def all_cases() -> list[dict[str, Any]]:
    return [trained(case) for case in CASES]


@pytest.fixture(scope="module")
def found() -> dict[int, list[list[dict[str, Any]]]]:
    """By number of processes and rank: what each case gave."""
    return {n: on_ranks(n, all_cases) for n in (1, 2, 4)}


def each(found: Any) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """What each process of several gave, beside what one gave; and what to call it."""
    return [
        (f"{case}, rank {rank} of {n}", found[n][rank][i], found[1][0][i])
        for n in (2, 4)
        for rank in range(n)
        for i, case in enumerate(CASES)
    ]


def test_each_update_has_the_same_samples(found):
    for n in (2, 4):
        for i, case in enumerate(CASES):
            parts = zip(*(found[n][rank][i]["ids"] for rank in range(n)), strict=True)
            together = [list(chain(*parts_of_a_batch)) for parts_of_a_batch in parts]
            assert together == found[1][0][i]["ids"], case
    sizes = [[len(batch) for batch in found[4][rank][0]["ids"][:20]] for rank in range(4)]
    assert sizes == [[2] * 19 + [0], [3] * 19 + [1]] * 2


def test_weights_agree_after_100_updates(found):
    for what, several, one in each(found):
        assert several["updates"] == one["updates"]
        mine, whole = (
            np.concatenate([one_of["weights"][name].ravel() for name in one["weights"]])
            for one_of in (several, one)
        )
        assert np.linalg.norm(mine - whole) <= 1e-6 * np.linalg.norm(whole), what
    assert found[1][0][0]["updates"] == UPDATES


def test_losses_and_metrics_are_those_of_the_whole(found):
    for what, several, one in each(found):
        # near zero a loss is a difference of larger numbers
        np.testing.assert_allclose(
            several["losses"], one["losses"], rtol=1e-6, atol=5e-7, err_msg=what
        )
        np.testing.assert_allclose(several["values"], one["values"], rtol=1e-6, err_msg=what)


def test_all_processes_have_the_very_same(found):
    for n in (2, 4):
        for rank in range(1, n):
            for mine, first in zip(found[n][rank], found[n][0], strict=True):
                for name in ("losses", "values", "preds", "targets"):
                    assert np.array_equal(mine[name], first[name]), name
                for name, weight in mine["weights"].items():
                    assert np.array_equal(weight, first["weights"][name]), name


def test_predictions_are_those_of_one_process(found):
    for what, several, one in each(found):
        assert np.array_equal(several["targets"], one["targets"]), what
        np.testing.assert_allclose(several["preds"], one["preds"], rtol=1e-5, atol=1e-6)


def test_training_did_something(found):
    for case in found[1][0]:
        assert case["values"][-1, 1] < 0.9 * case["values"][0, 1]
