"""Channels innermost: the same numbers from the other memory format."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers import tiny_learner
from treadle.callbacks import ChannelsLast
from treadle.data import DataLoaders
from treadle.loop import Callback
from treadle.optim import SGD, Adam


def image_learner(**kwargs):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 3, 8, 8, generator=generator).double()
    y = torch.randint(4, (48,), generator=generator)
    batches = list(zip(x.split(8), y.split(8), strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(2)
        )
    model.append(Mean()).double()
    dls = DataLoaders(batches[:4], batches[4:], device="cpu")
    return tiny_learner(dls=dls, model=model, lr=0.01, **kwargs)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(2)


def is_last(t):
    return t.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("opt_func", [SGD, Adam])
def test_it_trains_as_without(opt_func):
    plain = image_learner(opt_func=opt_func)
    last = image_learner(opt_func=opt_func, cbs=ChannelsLast())
    for learn in (plain, last):
        learn.fit(2)
        learn.fit(1)
    for p, other in zip(plain.model.parameters(), last.model.parameters(), strict=True):
        torch.testing.assert_close(p, other, rtol=1e-8, atol=1e-10)
    assert last.validate()[0] == pytest.approx(plain.validate()[0], rel=1e-6)


def test_parameters_inputs_and_activations_are_channels_last():
    formats = []

    class Look(Callback):
        def after_pred(self):
            formats.append((is_last(self.x), self.x.shape))

        def before_step(self):
            assert all(is_last(p.grad) for p in self.model.parameters() if p.ndim == 4)

    learn = image_learner(cbs=[ChannelsLast(), Look()])
    outs = []
    learn.model[0].register_forward_hook(lambda m, i, o: outs.append(is_last(o)))
    weight = learn.model[0].weight
    learn.fit(1)
    learn.validate()
    assert formats == [(True, (8, 3, 8, 8))] * 8
    assert all(outs)
    assert learn.model[0].weight is weight
    assert is_last(weight)
    assert not weight.is_contiguous()


def test_what_has_no_four_axes_is_left():
    """A model of vectors, and one of volumes, which has five."""
    tiny_learner(cbs=ChannelsLast()).fit(1)
    x, y = torch.randn(8, 3, 4, 4, 4), torch.randint(4, (8,))
    learn = tiny_learner(
        dls=DataLoaders([(x, y)], device="cpu"),
        model=nn.Sequential(nn.Conv3d(3, 4, 4), nn.Flatten()),
        cbs=ChannelsLast(),
    )
    learn.fit(1)
    assert learn.model[0].weight.is_contiguous()


def test_weights_are_saved_and_loaded(tmp_path):
    learn = image_learner(cbs=ChannelsLast(), path=tmp_path)
    learn.fit(1)
    learn.save("model")
    plain = image_learner(path=tmp_path)
    plain.load("model")
    assert all(
        map(torch.equal, learn.model.state_dict().values(), plain.model.state_dict().values())
    )
    assert plain.model[0].weight.is_contiguous()
