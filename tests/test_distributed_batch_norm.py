"""Batch norms over all processes, against torch's own over the whole batch in one."""

from __future__ import annotations

import copy
import importlib
import pickle
import warnings

import pytest
import torch
from torch import nn

from ranks import on_ranks
from treadle.data import DataLoaders
from treadle.distributed import DDP
from treadle.distributed.sync_batch_norm import synced_batch_norms
from treadle.errors import UsageError
from treadle.learner import Learner
from treadle.optim import SGD
from treadle.world import world

PARTS = {2: [5, 2], 3: [4, 1, 2]}
NORMS = {
    "flat": (lambda: nn.BatchNorm1d(3), (3,)),
    "sequence": (lambda: nn.BatchNorm1d(3, momentum=None), (3, 4)),
    "picture": (lambda: nn.BatchNorm2d(3, momentum=0.3, eps=1e-3), (3, 4, 5)),
    "volume": (lambda: nn.BatchNorm3d(3, affine=False), (3, 2, 2, 2)),
    "not tracked": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (3, 2, 2)),
    "no bias": (lambda: _without_bias(nn.BatchNorm2d(3)), (3, 2, 2)),
    "of torch": (lambda: nn.SyncBatchNorm(3), (3, 2, 2)),
}


def _without_bias(norm):
    norm.bias = None
    return norm


def _norm(kind, dtype):
    torch.manual_seed(0)
    norm = NORMS[kind][0]().to(dtype)
    for p in norm.parameters():
        nn.init.normal_(p)
    return norm


def _trained(kind, norm, parts, mine, dtype=torch.float64, offset=0.0):
    """Three batches: outputs, gradients of the inputs, then those of the parameters and buffers."""
    generator = torch.Generator().manual_seed(1)
    outputs, grads = [], []
    for _ in range(3):
        x = offset + torch.randn(7, *NORMS[kind][1], generator=generator, dtype=torch.float64)
        weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        part = x.to(dtype).split(parts)[mine].requires_grad_()
        y = norm(part)
        (y * weights.to(dtype).split(parts)[mine]).sum().backward()
        outputs.append(y.detach())
        grads.append(part.grad)
    own = [p.grad for p in norm.parameters()]
    norm.eval()
    with torch.no_grad():
        outputs.append(norm(part))
    return torch.cat(outputs), torch.cat(grads), own, dict(norm.named_buffers())


def _in_several(kind, dtype, offset):
    norm, now = _norm(kind, dtype), world()
    with synced_batch_norms(norm):
        return _trained(kind, norm, PARTS[now.size], now.rank, dtype, offset)


def _all_kinds(dtype, offset):
    return {kind: _in_several(kind, dtype, offset) for kind in NORMS}


def _joined(n, kind, parts):
    """What the processes have, in the order of the whole batches."""
    times = len(parts[0]) // PARTS[n][0]
    by_batch = zip(*(part.split(k) for part, k in zip(parts, PARTS[n], strict=True)), strict=True)
    whole = torch.cat([piece for batch in by_batch for piece in batch])
    assert len(whole) == 7 * times
    return whole


@pytest.mark.parametrize("n", PARTS)
def test_as_one_process_with_the_whole_batch(n):
    by_rank = on_ranks(n, _all_kinds, torch.float64, 3.0)
    for kind in NORMS:
        found = [each[kind] for each in by_rank]
        one = _norm(kind, torch.float64)
        outputs, grads, own, buffers = _trained(kind, one, [7], 0, offset=3.0)
        close = {"rtol": 1e-12, "atol": 1e-12, "msg": lambda m, kind=kind: f"{kind}: {m}"}
        # untracked norms take the statistics of their own part in evaluation
        tail = 7 if kind == "not tracked" else 0
        several = _joined(n, kind, [f[0] for f in found])
        torch.testing.assert_close(several[: 28 - tail], outputs[: 28 - tail], **close)
        torch.testing.assert_close(_joined(n, kind, [f[1] for f in found]), grads, **close)
        for i, grad in enumerate(own):
            torch.testing.assert_close(sum(f[2][i] for f in found), grad, **close)
        for _, _, _, theirs in found:
            torch.testing.assert_close(theirs, buffers, **close)
        assert all(
            torch.equal(theirs[name], found[0][3][name]) for *_, theirs in found for name in theirs
        )


def test_a_large_mean_does_not_cancel_the_variance():
    wide = _trained("picture", _norm("picture", torch.float64), [7], 0, offset=1e4)
    found = on_ranks(2, _in_several, "picture", torch.float32, 1e4)
    several = _joined(
        2, "picture", [f[0][:-part] for f, part in zip(found, PARTS[2], strict=True)]
    ).double()
    assert (several - wide[0][:21]).abs().max() < 0.01  # the input itself is rounded by 0.0005
    several = _joined(2, "picture", [f[1] for f in found]).double()
    assert (several - wide[1]).abs().max() < 0.01


def _half():
    norm = _norm("picture", torch.float32)
    x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(world().rank))
    with synced_batch_norms(norm), torch.autocast("cpu"):
        x16 = x.bfloat16().requires_grad_()
        y = norm(x16)
    y.float().square().sum().backward()
    return x16.detach(), y.detach(), x16.grad.dtype, norm.running_mean


def test_half_precision_is_computed_in_single():
    found = on_ranks(2, _half)
    norm = _norm("picture", torch.float32)
    expected = norm(torch.cat([f[0] for f in found]).float())
    torch.testing.assert_close(torch.cat([f[1] for f in found]), expected.detach().bfloat16())
    assert [f[2] for f in found] == [torch.bfloat16] * 2
    torch.testing.assert_close(found[0][3], norm.running_mean)


class Mine(nn.BatchNorm1d):
    """A subclass without a `forward` of its own."""


class Other(nn.BatchNorm1d):
    """One with."""

    def forward(self, input):
        return input


def _dressed():
    now = world()
    model = nn.Sequential(nn.Linear(2, 2), Mine(2), nn.Sequential(Other(2), nn.BatchNorm1d(2)))
    classes, shown = [type(m) for m in model.modules()], repr(model)
    heard, names = [], list(model.state_dict())
    model[1].register_forward_hook(lambda module, args, output: heard.append(len(output)))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(3, 2)
    with synced_batch_norms(model):
        model(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's own parts
            compiled(x).sum().backward()
        assert repr(model) == shown and list(model.state_dict()) == names
        assert isinstance(model[1], Mine) and type(model[1]) is not Mine
        assert type(model[2][0]) is Other
        copied, read = copy.deepcopy(model[2]), pickle.loads(pickle.dumps(model[2]))
        assert [type(m) for m in copied.modules()] == classes[3:]
        assert [type(m) for m in read.modules()] == classes[3:]
    assert [type(m) for m in model.modules()] == classes
    assert heard == [3, 3] and model[1].num_batches_tracked == 2
    if now.rank == 0:
        model(x)  # alone again
    try:
        with synced_batch_norms(model):
            model(x)
            raise KeyError
    except KeyError:
        assert type(model[1]) is Mine


def test_the_model_is_its_own_again():
    importlib.import_module("torch._dynamo")  # slow: here once, and not in each process

    on_ranks(2, _dressed)


def _too_few():
    norm = nn.BatchNorm1d(2)
    with synced_batch_norms(norm, borrowed=lambda: world().rank == 0):
        with pytest.raises(UsageError, match="one value a channel"):
            norm(torch.randn(1, 2))
        x = torch.randn(4, 2, requires_grad=True)
        y = norm(x)
    (y * y.detach()).sum().backward()
    return x.detach(), y.detach(), x.grad, norm.running_mean, norm.weight.grad


def test_what_is_borrowed_counts_for_nothing():
    (_, nothing, no_grad, mean, no_weight), (x, y, *_, other_mean, weight) = on_ranks(2, _too_few)
    norm = nn.BatchNorm1d(2)
    norm.running_mean += 0
    torch.testing.assert_close(y, norm(x).detach())
    assert not nothing.any() and not no_grad.any() and not no_weight.any() and weight.any()
    assert torch.equal(mean, other_mean)


def _fitted():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm1d(6), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)
    ).double()
    x = torch.randn(34, 6, generator=torch.Generator().manual_seed(1)).double()
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    dls = DataLoaders.from_dsets(
        data, data, global_bs=8, drop_last=False, num_workers=0, device="cpu", seed=3
    )
    parallel = DDP(sync_bn=True) if world().size > 1 else None
    learn = Learner(dls, model, nn.CrossEntropyLoss(), SGD, lr=0.1, parallel=parallel)
    learn.fit_one_cycle(3, 0.1)
    return learn.model.state_dict(), learn.recorder.losses


def test_a_fit_has_the_numbers_of_one_process():
    expected, losses = _fitted()
    for state, several in on_ranks(3, _fitted):
        torch.testing.assert_close(state, expected, rtol=1e-6, atol=1e-9)
        assert several == pytest.approx(losses, rel=1e-6)
