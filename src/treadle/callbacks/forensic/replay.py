"""Run the batch that went wrong once more, from where it started, and look."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from treadle.callbacks.forensic.finding import NonFinite, most_telling
from treadle.callbacks.forensic.watch import Watch, blame
from treadle.loop.events import Callback
from treadle.loop.state import generators, set_generators
from treadle.metrics import batch_size

# Batch norm writes its statistics without counting a version of them, so small buffers are copied
# each time; large ones (masks, tables), which would cost, only when their version says so.
_LARGE = 2**16


class KeptState(Callback):
    """What a forward pass starts from, as it was before the last one of training: torch's random
    numbers, the model's buffers, and the hidden state of modules with a `reset`."""

    order = math.inf  # after all that draw random numbers to make the batch
    run_valid = False

    def __init__(self, model: nn.Module) -> None:
        self.buffers = list(model.buffers())
        self.kept = [b.detach().clone() for b in self.buffers]
        self.versions = [b._version for b in self.buffers]
        self.with_hidden = [m for m in model.modules() if hasattr(m, "reset")]
        self.hidden = [_attributes(m) for m in self.with_hidden]
        self._note_generators()

    def before_batch(self) -> None:
        self._note_generators()
        # A forward pass gives these a new state; it does not change the one of before.
        self.hidden = [_attributes(m) for m in self.with_hidden]
        moved = self._moved()
        if moved:
            torch._foreach_copy_([kept for kept, _ in moved], [live for _, live in moved])
            self.versions = [b._version for b in self.buffers]

    def _note_generators(self) -> None:
        self.generator = torch.get_rng_state()
        cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        self.cuda_generators = torch.cuda.get_rng_state_all() if cuda else None

    def _moved(self) -> list[tuple[Tensor, Tensor]]:
        every = zip(self.kept, self.buffers, self.versions, strict=True)
        return [
            (kept, live)
            for kept, live, version in every
            if live._version != version or live.numel() < _LARGE
        ]

    def put_back(self) -> None:
        """Buffers and hidden states as they were."""
        for module, attributes in zip(self.with_hidden, self.hidden, strict=True):
            vars(module).update(attributes)
        with torch.no_grad():
            for kept, live in self._moved():
                live.copy_(kept)

    def rewind(self) -> None:
        """Buffers, hidden states and random numbers as they were."""
        self.put_back()
        torch.set_rng_state(self.generator)
        if self.cuda_generators is not None:
            torch.cuda.set_rng_state_all(self.cuda_generators)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module has beside parameters, buffers, parts and hooks."""
    return {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}


class Replayed(Exception):
    """Ends a replay when its gradients are there."""


def replay(learn: Any, kept: KeptState, cb: Callback, what: str, value: float) -> NonFinite:
    """Run the batch at hand once more, up to its gradients, and say where `value` came from.

    Afterwards all is as before, but for the buffers, which are as before the batch. `cb` raises
    `Replayed` after the backward pass; callbacks that report are not asked. Several processes come
    here together, and get the same.
    """
    world = learn.parallel.world
    found = NonFinite(what, value, learn.epoch, learn.iter, batch_size=batch_size(learn.xb))
    blamed = blame(found, "an input", learn.xb) or blame(found, "a target", learn.yb)
    if any(world.all(blamed)):
        kept.put_back()
    else:
        watch = Watch(learn.model)
        with _untouched(learn, kept, cb):
            try:
                with watch.listening(), suppress(Replayed):
                    learn._do_one_batch()
                found.where = watch.find(found, learn)
            except Exception as error:  # which must not hide what was to be explained
                found.where = f"running the batch once more to find out why failed ({error!r})"
    found.indices, found.items = _items(learn, found.samples)
    return most_telling(world.all(found))


_OF_THE_BATCH = "xb yb pred _loss _loss_grad _gradient_is_in".split()


@contextmanager
def _untouched(learn: Any, kept: KeptState, cb: Callback) -> Iterator[None]:
    """What a replay changes is put back. The step is not reached, so weights and optimizer stay."""
    fields = {name: value for name, value in vars(learn).items() if name in _OF_THE_BATCH}
    fields["window"] = learn.window
    learn.window = copy.copy(learn.window)
    grads = [(p, p.grad) for p in learn.model.parameters()]
    drawn = generators()
    silent = [other for other in learn.cbs if other.reports and other is not cb and other.run]
    try:
        kept.rewind()
        learn.pred = learn.loss = None
        for p, _ in grads:
            p.grad = None
        for other in silent:
            other.run = False
        with ExitStack() as stack:
            if "torch._dynamo" in sys.modules:  # compiled code does not see new hooks
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        for other in silent:
            other.run = True
        for p, grad in grads:
            p.grad = grad
        for name, value in fields.items():
            setattr(learn, name, value)
        set_generators(drawn)
        kept.put_back()


def _items(learn: Any, samples: list[int]) -> tuple[list[int], list[str]]:
    """The data set's indices and items of these samples, where the loader is Treadle's."""
    dl = learn.dl
    if not samples or not all(hasattr(dl, name) for name in ("indices", "item_name")):
        return [], []
    indices = [int(dl.indices[i]) for i in samples]
    named = getattr(dl.dataset, "items", None) is not None
    return indices, [dl.item_name(i) for i in indices] if named else []
