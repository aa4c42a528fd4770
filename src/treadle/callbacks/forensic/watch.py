"""Hooks on all modules of a model, for one batch: where do numbers first appear that are none?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from treadle.callbacks.forensic.finding import NonFinite, floats, is_finite, rows, spread
from treadle.loop.nested import map_tensors


@dataclass
class Call:
    """A module at work: one run of its forward."""

    module: nn.Module
    depth: int
    caller: Call | None
    finite_input: bool
    given: str
    births: int


class Watch:
    """Hooks on all modules of a model that note where the first numbers appear that are none.

    Every number looked at is waited for: this is for one batch, once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {m: name for name, m in model.named_modules()}
        self.owners = {p: m for m in self.names for p in m.parameters(recurse=False)}
        self.stack: list[Call] = []
        self.calls: dict[nn.Module, Call] = {}
        # Runs of modules whose output is not finite though their input is. Within a module that
        # gives finite numbers again, as attention with its masks does, they do not count.
        self.births: list[tuple[Call, Tensor]] = []
        self.first_gradient: Tensor | None = None
        # Who saw that gradient: it came out of the run, or went back into it.
        self.out_of: list[Call] = []
        self.into: list[Call] = []
        self.of_parameter: nn.Module | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """With the hooks on, as long as the block lasts."""
        handles = [
            handle
            for m in self.names
            for handle in (
                m.register_forward_pre_hook(self._starts, with_kwargs=True),
                m.register_forward_hook(self._ends),
            )
        ]
        handles += [
            p.register_hook(partial(self._parameter_gradient, m))
            for p, m in self.owners.items()
            if p.requires_grad
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _starts(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs, own = floats((args, kwargs)), list(module.parameters(recurse=False))
        caller = self.stack[-1] if self.stack else None
        call = Call(
            module,
            depth=len(self.stack),
            caller=caller,
            finite_input=all(map(is_finite, inputs)),
            given=spread("its input", inputs) + spread("its parameters", own),
            births=len(self.births),
        )
        self.stack.append(call)
        self.calls[module] = call
        for t in inputs:
            if t.requires_grad:
                t.register_hook(partial(self._gradient, self.out_of, call))

    def _ends(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self.stack.pop()
        outputs = floats(output)
        bad = next((t for t in outputs if not is_finite(t)), None)
        if bad is None:
            del self.births[call.births :]
        elif call.finite_input:
            self.births.append((call, bad.detach().clone()))
        for t in outputs:
            if t.requires_grad:
                t.register_hook(partial(self._gradient, self.into, call))

    def _gradient(self, seen: list[Call], call: Call, grad: Tensor) -> None:
        if self.first_gradient is None and not is_finite(grad):
            self.first_gradient = grad
        if grad is self.first_gradient and self.of_parameter is None:
            seen.append(call)

    def _parameter_gradient(self, owner: nn.Module, grad: Tensor) -> None:
        if self.first_gradient is None and not is_finite(grad):
            self.first_gradient, self.of_parameter = grad, owner

    def find(self, found: NonFinite, learn: Any) -> str:
        """Where it came from, in words; the rest goes into `found`. Empty if it did not come."""
        finite_loss = found.what == "a gradient"  # so infinities on the way to it did no harm
        return self._find_gradient(found) if finite_loss else self._find_value(found, learn)

    def _find_value(self, found: NonFinite, learn: Any) -> str:
        if self.births:
            # -inf alone may be a mask; it is to blame if nothing else is
            worse = (born for born in self.births if not is_finite(born[1].clamp(min=0)))
            call, output = next(worse, self.births[0])
            self._blame_module(found, call.module, output, of_values=True)
            return f"it began in the output of {self._called(call.module)}{call.given}"
        if blame(found, "the prediction", learn.pred):
            return f"the prediction as {learn.ordered_cbs('after_pred')} left it is not finite"
        if learn.loss_grad is None or is_finite(learn.loss_grad.detach()):
            return ""
        return _blame_loss(found, learn)

    def _find_gradient(self, found: NonFinite) -> str:
        grad = self.first_gradient
        if grad is None:
            return ""
        module = self.of_parameter or self._source_of_gradient()
        if module is None:
            found.samples = rows(grad, found.batch_size)
            found.parameters = self._spoilt(of_values=False)
            return "it began in the gradient that the loss function gives the prediction"
        self._blame_module(found, module, grad, of_values=False)
        call = self.calls.get(module)
        given = call.given if call else ""
        return f"it began in the gradient that comes out of {self._called(module)}{given}"

    def _source_of_gradient(self) -> nn.Module | None:
        """The innermost module within which the first gradient was computed; None for the loss.

        A gradient of what a run was given was computed in the run; one of what a run gave, in the
        code that called it. A run that got this gradient itself only handed it on.
        """
        handed_on = {id(call) for call in self.into}
        callers = [call.caller for call in self.into]
        inside = [c for c in (*self.out_of, *callers) if c and id(c) not in handed_on]
        return max(inside, key=lambda call: call.depth).module if inside else None

    def _blame_module(
        self, found: NonFinite, module: nn.Module, numbers: Tensor, of_values: bool
    ) -> None:
        found.module = self.names[module]
        found.samples = [] if self.of_parameter else rows(numbers, found.batch_size)
        found.parameters = self._spoilt(of_values, module)

    def _spoilt(self, of_values: bool, first: nn.Module | None = None) -> list[str]:
        """Parameters that are not finite, or whose gradients are not: those of `first` first."""
        own = set(first.parameters(recurse=False)) if first is not None else set()
        named = sorted(self.model.named_parameters(), key=lambda pair: pair[1] not in own)
        looked_at = ((name, p.detach() if of_values else p.grad) for name, p in named)
        return [name for name, t in looked_at if t is not None and not is_finite(t)]

    def _called(self, module: nn.Module) -> str:
        name, kind = self.names[module], type(module).__name__
        own = " itself, outside its parts" if next(module.children(), None) is not None else ""
        return f"the module {name} ({kind}){own}" if name else f"the model ({kind}){own}"


def blame(found: NonFinite, what: str, batch: Any) -> bool:
    """Whether one of the tensors in `batch` is not finite; then that is what is to blame."""
    bad = next((t for t in floats(batch) if not is_finite(t)), None)
    if bad is None:
        return False
    found.where, found.samples = f"{what} is not finite", rows(bad, found.batch_size)
    return True


def _blame_loss(found: NonFinite, learn: Any) -> str:
    pred, yb = map_tensors(Tensor.detach, learn.pred), learn.yb
    with torch.no_grad():
        if is_finite(learn.loss_func(pred, *yb)):
            return f"the loss as {learn.ordered_cbs('after_loss')} left it is not finite"
        found.samples = [i for i in range(found.batch_size) if not _loss_of_one(learn, i)]
    return f"it began in the loss function{spread('the prediction', floats(pred))}"


def _loss_of_one(learn: Any, i: int) -> bool:
    """Whether sample `i` has a finite loss by itself; one that cannot be told has."""
    pred, yb = map_tensors(lambda t: t[i : i + 1], (learn.pred, learn.yb))
    try:
        return is_finite(learn.loss_func(pred, *yb))
    except Exception:  # a loss over whole batches, or shapes without an axis of samples
        return True
