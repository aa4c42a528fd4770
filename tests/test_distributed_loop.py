"""The loop in several processes: one loss, one decision, one model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ranks import on_ranks, outcomes
from treadle.callbacks import GradientAccumulation
from treadle.data import DataLoaders
from treadle.distributed import DDP
from treadle.errors import UsageError
from treadle.learner import Learner
from treadle.loop.events import (
    Callback,
    CancelBatchException,
    CancelFitException,
    CancelStepException,
    CancelTrainException,
    CancelValidException,
)
from treadle.loop.parallel import Parallel
from treadle.metrics import Metric, accuracy
from treadle.optim import SGD
from treadle.world import world


def _data(n: int = 40):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=generator)
    return torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())


def _learner(n=40, n_valid=40, bs=8, model=None, **options):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    train = torch.utils.data.TensorDataset(*_data(n).tensors)
    dls = DataLoaders.from_dsets(
        train, _data(n_valid), global_bs=bs, drop_last=False, num_workers=0, device="cpu", seed=3
    )
    return Learner(dls, model, nn.CrossEntropyLoss(), SGD, lr=0.1, **options)


def _weights(learn):
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


class Counts(Callback):
    def before_fit(self):
        self.batches, self.steps, self.validated, self.epochs = 0, 0, 0, 0

    def after_backward(self):
        self.batches += 1

    def after_step(self):
        self.steps += 1

    def after_validate(self):
        self.validated += 1

    def after_epoch(self):
        self.epochs += 1


class CancelsOnOne(Callback):
    """Raises in rank 1 only, in the third batch of training or before a validation."""

    def __init__(self, name, kind):
        def hear(cb):
            now = name == "before_validate" or (cb.learn.training and cb.iter == 2)
            if now and world().rank == 1:
                raise kind

        super().__init__(**{name: hear})


CANCELLED = {
    "step": ("before_step", CancelStepException, (10, 10, 2, 2)),
    "batch": ("after_pred", CancelBatchException, (8, 8, 2, 2)),
    "train": ("before_batch", CancelTrainException, (4, 4, 2, 2)),
    "valid": ("before_validate", CancelValidException, (10, 10, 2, 2)),
    "fit": ("after_loss", CancelFitException, (2, 2, 0, 0)),
}


def _cancelled(case, on_which):
    name, kind, _ = CANCELLED[case]
    counts = Counts()
    canceller = [CancelsOnOne(name, kind)] if world().rank in on_which else []
    learn = _learner(cbs=[counts, *canceller])
    learn.fit(2)
    return (counts.batches, counts.steps, counts.validated, counts.epochs), _weights(learn)


def _all_cancelled(on_which):
    return {case: _cancelled(case, on_which) for case in CANCELLED}


@pytest.mark.parametrize("on_which", [(0, 1), (1,)], ids=["in all", "in one alone"])
def test_what_one_process_cancels_all_cancel(on_which):
    first, second = on_ranks(2, _all_cancelled, on_which)
    for case, (*_, expected) in CANCELLED.items():
        assert first[case][0] == second[case][0] == expected, case
        assert torch.equal(first[case][1], second[case][1]), case


def _loss_and_gradient():
    seen = {}

    class Look(Callback):
        def after_loss(self):
            seen.setdefault("losses", []).append(self.loss.item())

        def after_backward(self):
            seen["grads"] = [p.grad.clone() for p in self.model.parameters()]
            raise CancelFitException

    learn = _learner(n=21, bs=21, cbs=Look())
    learn.fit(1)
    return seen


def test_loss_and_gradient_are_those_of_the_whole_batch():
    alone = _loss_and_gradient()
    for several in on_ranks(3, _loss_and_gradient):
        assert several["losses"] == pytest.approx(alone["losses"], rel=1e-6)
        for mine, whole in zip(several["grads"], alone["grads"], strict=True):
            torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-7)


class Tracked(nn.Module):
    """A batch norm, dropout, and a layer that some batches do not use."""

    def __init__(self, skip=False):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.first, self.second, self.skip = nn.Linear(6, 8), nn.Linear(8, 2), skip
        self.other = nn.Linear(6, 8)
        self.masks = []

    def forward(self, x):
        hidden = self.drop(self.first(self.norm(x)))
        if self.training:
            self.masks.append((hidden == 0).sum(1))
        return self.second(hidden if self.skip else hidden + self.other(x))


def _buffers_and_dropout():
    learn = _learner(n=48, n_valid=7, model=Tracked(), metrics=accuracy)
    learn.fit(2)
    after = torch.rand(1).item()
    masks = torch.cat(learn.model.masks).tolist()
    return learn.model.norm.running_mean, masks, after, learn.validate(), _weights(learn)


def test_buffers_are_alike_and_dropout_is_not():
    first, second = on_ranks(2, _buffers_and_dropout)
    assert torch.equal(first[0], second[0]) and torch.equal(first[4], second[4])
    assert first[1] != second[1]
    assert first[2] == second[2]  # all draw alike again
    assert first[3] == second[3]


def _unused(find):
    learn = _learner(model=Tracked(skip=True), parallel=DDP(find_unused=find))
    learn.fit(1)
    return _weights(learn)


def test_a_parameter_without_a_gradient_is_an_error_that_names_it():
    for how, told in outcomes(2, _unused, False):
        assert how == "raised" and "other.weight, other.bias" in told and "find_unused" in told
    first, second = on_ranks(2, _unused, True)
    assert torch.equal(first, second)


def _frozen():
    def splitter(model):
        return [list(model[0].parameters()), list(model[2].parameters())]

    learn = _learner(splitter=splitter)
    learn.fine_tune(1, freeze_epochs=1, base_lr=0.1)
    return _weights(learn)


def test_freezing_and_unfreezing():
    first, second = on_ranks(2, _frozen)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, _frozen(), rtol=1e-5, atol=1e-6)


def _windows():
    def drop_last_batch(cb):
        if cb.iter == cb.n_iter - 1:
            raise CancelBatchException

    whole = _learner(n=44, cbs=GradientAccumulation(16))
    whole.fit(2)
    cut = _learner(n=44, cbs=[GradientAccumulation(16), Callback(before_batch=drop_last_batch)])
    cut.fit(1)
    return _weights(whole), _weights(cut), whole.recorder.raw_losses, whole.updates


def test_windows_of_several_batches():
    alone = _windows()
    first, second = on_ranks(2, _windows)
    for mine, other, whole in zip(first[:2], second[:2], alone[:2], strict=True):
        assert torch.equal(mine, other)
        torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-6)
    assert first[2] == second[2] == pytest.approx(alone[2], rel=1e-5)
    assert first[3] == second[3] == alone[3]


def _ask():
    learn = _learner(n_valid=11, bs=4, metrics=accuracy)
    preds, targets, losses = learn.get_preds(with_loss=True)
    return learn.validate(), preds, targets, losses


def test_validation_and_answers_are_those_of_all_data():
    alone = _ask()
    for values, preds, targets, losses in on_ranks(3, _ask):
        assert values == pytest.approx(alone[0], rel=1e-6)
        torch.testing.assert_close(preds, alone[1])
        assert torch.equal(targets, alone[2])
        torch.testing.assert_close(losses, alone[3])


def _asked_by_one():
    learn = _learner()
    x, y = _data(3).tensors
    learn.fit(1)
    return learn.get_preds(dl=[(x, y)])[0].shape if world().rank == 1 else None


def test_one_process_may_ask_by_itself():
    assert on_ranks(2, _asked_by_one) == [None, (3, 2)]


class Silent(Metric):
    def reset(self):
        self.seen = 0

    def accumulate(self, learn):
        self.seen += 1

    @property
    def value(self):
        return float(self.seen)


def _unmergeable():
    _learner(metrics=Silent()).validate()


def test_a_metric_that_cannot_be_merged_says_so():
    for how, told in outcomes(2, _unmergeable):
        assert how == "raised" and "Silent cannot be merged" in told


class Writes(Callback):
    on_main = True

    def after_fit(self):
        self.learn.written = world().rank


def _who_writes(capture):
    learn = _learner(cbs=Writes())
    learn.fit(1)
    return getattr(learn, "written", None)


def test_what_writes_is_heard_in_the_main_process_alone():
    assert on_ranks(2, _who_writes, None) == [0, None]


def test_in_one_process_there_is_nothing_to_share():
    assert type(_learner(parallel="ddp").parallel) is Parallel
    with pytest.raises(UsageError, match="did you mean fsdp"):
        _learner(parallel="fsdb")
