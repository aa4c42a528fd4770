"""A box of other images in each image: found again in what the model gets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import copied_params, same_params, tiny_learner
from treadle.callbacks import CutMix
from treadle.data import DataLoaders
from treadle.errors import UsageError
from treadle.loop import Callback


def image_dls(n=12, height=9, width=14, batches=6):
    """Images whose pixels all hold the image's number: what was pasted is seen at once."""
    x = torch.arange(1.0, n + 1).view(n, 1, 1, 1).expand(n, 3, height, width).contiguous()
    y = torch.arange(n) % 4
    return DataLoaders([(x, y)] * batches, [(x, y)], device="cpu")


def image_learner(dls=None, **kwargs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4))
    return tiny_learner(dls=dls or image_dls(), model=model, lr=0.01, **kwargs)


class Watch(Callback):
    order = 50

    def before_fit(self):
        self.batches = []

    def after_batch(self):
        self.batches.append((self.training, self.x, self.pred, self.loss.item()))


def boxes(alpha, n_batches, seed=0, **shape):
    """(mask of the box, which image was pasted into each) of each training batch."""
    torch.manual_seed(seed)
    watch = Watch()
    learn = image_learner(image_dls(batches=n_batches, **shape), cbs=[CutMix(alpha), watch])
    with learn.no_logging():
        learn.fit(1)
    for training, x, pred, loss in watch.batches:
        if training:
            own = torch.arange(1.0, len(x) + 1).view(-1, 1, 1, 1)
            changed = (x != own).any(0)[0]
            inside = x[:, 0, changed]
            others = inside[:, 0].long() - 1 if changed.any() else torch.arange(len(x))
            yield x, changed, others, pred, loss


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_one_box_a_batch_and_the_loss_by_its_true_area(alpha):
    y = torch.arange(12) % 4
    some = 0
    for x, changed, others, pred, loss in boxes(alpha, 30):
        rows, cols = changed.any(1), changed.any(0)
        assert torch.equal(changed, rows[:, None] & cols)  # a box, and
        for side in (rows, cols):  # in one piece
            assert side.float().diff().clamp(min=0).sum() + side[0] <= 1
        pasted = x[:, :, changed]
        assert torch.equal(pasted, (others + 1.0).view(-1, 1, 1).expand_as(pasted))
        assert sorted(others.tolist()) == list(range(12))
        share = changed.double().mean()
        log_probs = pred.double().log_softmax(1)
        own, other = F.nll_loss(log_probs, y), F.nll_loss(log_probs, y[others])
        assert loss == pytest.approx(((1 - share) * own + share * other).item(), rel=1e-4)
        some += bool(changed.any())
    assert some > 20


def test_the_box_has_the_proportions_of_the_image_and_the_share_that_was_drawn():
    """Uniform lam (alpha 1): sides of the root of 1 - lam, each cut where it leaves the image.

    The mean length of an interval of share s about a uniform centre, cut at both ends, is
    s - s²/4; over s = sqrt(u), u uniform, that is 2/3 - 1/8. Of two images, half of the random
    orders change none."""
    sides = []
    for _, changed, *_ in boxes(1.0, 1500, n=2, height=40, width=60):
        sides.append([changed.any(1).double().mean(), changed.any(0).double().mean()])
    height, width = torch.tensor(sides).mean(0).tolist()
    assert height == pytest.approx((2 / 3 - 1 / 8) / 2, abs=0.02)
    assert width == pytest.approx((2 / 3 - 1 / 8) / 2, abs=0.02)


def test_any_loss_serves():
    def own_loss(pred, target):
        return (pred.softmax(1) - F.one_hot(target, 4)).square().sum(1).max()

    learn = image_learner(loss_func=own_loss, cbs=CutMix())
    before = copied_params(learn.model)
    learn.fit(1)
    assert not same_params(learn.model, before)
    assert learn.loss_func is own_loss


def test_validation_sees_no_box():
    watch = Watch()
    learn = image_learner(cbs=[CutMix(), watch])
    learn.fit(2)
    validated = [x for training, x, *_ in watch.batches if not training]
    assert len(validated) == 2
    assert all(torch.equal(x, learn.dls.valid[0][0]) for x in validated)


def test_other_axes_are_pasted_whole():
    x, y = torch.randn(5, 2, 3, 8, 8), torch.randint(4, (5,))  # short films
    learn = tiny_learner(
        dls=DataLoaders([(x, y)], device="cpu"),
        model=nn.Sequential(nn.Flatten(), nn.Linear(384, 4)),
        cbs=[CutMix(), Watch()],
    )
    torch.manual_seed(2)
    learn.fit(1)
    changed = (learn.watch.batches[0][1] != x).any(0)
    assert changed.any()
    assert torch.equal(changed, changed[0, 0].expand_as(changed))


@pytest.mark.parametrize(
    ("x", "got"),
    [(torch.zeros(4, 8), r"got shape \(4, 8\)"), ((torch.zeros(4, 3, 8, 8),) * 2, "got a tuple")],
)
def test_what_is_no_image_is_refused(x, got):
    learn = tiny_learner(dls=DataLoaders([(x, torch.zeros(4))], device="cpu"), cbs=CutMix())
    with pytest.raises(UsageError, match=got):
        learn.fit(1)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_an_alpha_that_is_none_is_refused(alpha):
    with pytest.raises(UsageError, match="give above 0"):
        CutMix(alpha)


def test_the_same_generator_gives_the_same_training():
    def trained(seed):
        torch.manual_seed(seed)
        learn = image_learner(cbs=CutMix())
        learn.fit(2)
        return learn.model

    assert same_params(trained(1), copied_params(trained(1)))
    assert not same_params(trained(1), copied_params(trained(2)))
