"""Hooks on modules: what they keep, when they listen, and that they always go."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import nn

from helpers import tiny_learner
from treadle.callbacks import Hook, HookCallback, Hooks, hook_output, hook_outputs
from treadle.errors import CallbackError, UsageError
from treadle.loop import Callback, CancelFitException


def hooks_on(model):
    """How many hooks of any kind are left on the modules."""
    return sum(
        len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks)
        for m in model.modules()
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


# One hook, several hooks


def test_a_hook_keeps_what_its_function_returns(model):
    x = torch.randn(5, 8)
    with Hook(model[1], lambda m, i, o: (type(m), i[0].shape, o.shape)) as hook:
        assert hook.stored is None
        out = model(x)
    assert hook.stored == (nn.ReLU, (5, 16), (5, 16))
    assert torch.equal(model(x), out)
    assert hooks_on(model) == 0


def test_hooks_are_removed_when_the_block_fails(model):
    with pytest.raises(RuntimeError), hook_outputs(model), hook_output(model, grad=True):
        assert hooks_on(model) == 4
        model(torch.randn(5, 9))
    assert hooks_on(model) == 0


def test_remove_twice(model):
    hook = hook_output(model[0])
    hooks = hook_outputs([model[1], model[2]])
    for one in (hook, hook, hooks, hooks):
        one.remove()
    assert hooks_on(model) == 0


def test_outputs(model):
    x = torch.randn(5, 8)
    with hook_outputs(model) as hooks:
        model(x)
    first = model[0](x)
    assert len(hooks) == 3
    assert torch.equal(hooks[0].stored, first)
    assert torch.equal(hooks.stored[1], first.relu())
    assert [hook.stored is kept for hook, kept in zip(hooks, hooks.stored, strict=True)] == [
        True
    ] * 3
    assert not hooks[0].stored.requires_grad


def test_outputs_with_their_graph(model):
    with hook_output(model[0], detach=False) as hook:
        model(torch.randn(5, 8)).sum().backward()
    assert hook.stored.requires_grad


def test_gradients_of_outputs(model):
    x = torch.randn(5, 8)
    with hook_output(model[2], grad=True) as hook:
        model(x).square().sum().backward()
    (grad,) = hook.stored
    torch.testing.assert_close(grad, 2 * model(x).detach())


def test_nested_outputs_are_detached():
    lstm = nn.LSTM(3, 4)
    with hook_output(lstm) as hook:
        lstm(torch.randn(2, 1, 3))
    out, (h, c) = hook.stored
    assert not any(t.requires_grad for t in (out, h, c))


def test_what_is_no_module_is_refused(model):
    with pytest.raises(UsageError, match=r"listens to an nn\.Module, and got 'conv1'"):
        hook_output("conv1")
    with pytest.raises(UsageError, match="and got 0"):
        Hooks([model[0], 0], print)
    assert hooks_on(model) == 0


# In training


class Shapes(HookCallback):
    """Every call: epoch, batch, in training or not, the module, the shape of its output."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def hook(self, module, inputs, output):
        name = type(module).__name__
        self.calls.append((self.epoch, self.iter, self.learn.training, name))
        return output.shape


def test_it_listens_to_the_layers_in_training():
    learn = tiny_learner(cbs=Shapes())
    learn.fit(2)
    shapes = learn.shapes
    assert shapes.calls == [
        (epoch, i, True, "Linear") for epoch in range(2) for i in range(8) for _ in range(2)
    ]
    assert list(shapes.layers) == ["0", "2"]
    assert shapes.hooks.stored[1] == (16, 4)
    assert hooks_on(learn.model) == 0


def test_every_so_many_batches():
    learn = tiny_learner(cbs=Shapes(every=3))
    learn.fit(2)
    assert [i for _, i, *_ in learn.shapes.calls[::2]] == [0, 3, 6, 0, 3, 6]


def test_which_modules():
    learn = tiny_learner(cbs=Shapes(include_paramless=True))
    learn.fit(1)
    assert list(learn.shapes.layers) == ["0", "1", "2"]
    other = nn.Linear(1, 1)
    chosen = Shapes(modules=[learn.model[1], learn.model, other])
    learn.fit(1, cbs=chosen)
    assert list(chosen.layers.values()) == [learn.model[1], learn.model, other]
    assert [name for *_, name in chosen.calls[:2]] == ["ReLU", "Sequential"]
    none = Shapes(modules=[])
    learn.fit(1, cbs=none)
    assert none.calls == []


def test_in_the_backward_pass():
    class Grads(HookCallback):
        def hook(self, module, grad_inputs, grad_outputs):
            return grad_outputs[0].abs().sum()

    learn = tiny_learner()
    learn.add_cb(Grads([learn.model[2]], is_forward=False))
    learn.fit(1)
    assert learn.grads.hooks[0].stored > 0
    assert hooks_on(learn.model) == 0


def test_switched_off_it_does_not_listen():
    shapes = Shapes()
    learn = tiny_learner(cbs=shapes)
    stop = Callback(after_epoch=lambda cb: setattr(shapes, "run", False))
    learn.fit(3, cbs=stop)
    assert {epoch for epoch, *_ in shapes.calls} == {0}


@pytest.mark.parametrize("error", [CancelFitException, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("moment", ["before_fit", "after_pred", "before_validate", "after_fit"])
def test_the_hooks_go_however_the_fit_ends(moment, error):
    def fail(cb):
        raise error

    learn = tiny_learner(cbs=[Shapes(), Callback(**{moment: fail})])
    with suppress(error):
        learn.fit(1)
    assert hooks_on(learn.model) == 0


def test_a_sweep_leaves_no_hooks():
    learn = tiny_learner(cbs=Shapes())
    learn.lr_find(num_it=20, show_plot=False)
    assert hooks_on(learn.model) == 0


def test_a_callback_without_a_hook_says_so():
    with pytest.raises(CallbackError, match=r"give it hook\(module, inputs, output\)"):
        tiny_learner(cbs=HookCallback()).fit(1)


def test_every_is_a_count():
    with pytest.raises(UsageError, match="every=0 is below 1"):
        Shapes(every=0)
