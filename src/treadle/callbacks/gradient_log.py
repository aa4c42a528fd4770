"""How large the gradients were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from treadle.callbacks.layer_plots import plot_gradients
from treadle.loop.events import Callback
from treadle.plots import show
from treadle.sums import norms


class GradientLog(Callback):
    """Keeps the Euclidean norm of each parameter's gradient at each update of the last fit.

    It looks before gradients are clipped, in fp16 at those without their scale, and at the whole of
    those that are spread over processes. The norms stay on the device until the epoch ends or
    somebody reads them, so a training step does not wait.

    Attributes:
        names: the parameters, as in `model.named_parameters()`.

    >>> log = GradientLog()
    """

    order = 10  # after those that put the step off, before those that change the gradients
    reports = True

    def __init__(self) -> None:
        self._start([])

    def _start(self, names: list[str]) -> None:
        self.names = names
        self._rows: list[Tensor] = []
        self._norms = torch.empty(0, len(names))

    def before_fit(self) -> None:
        self._start([name for name, _ in self.model.named_parameters()])

    def before_step(self) -> None:
        self.precision.unscale(self.opt)
        none = torch.full((), torch.nan, device=self.loss.device)
        grads = [none if p.grad is None else p.grad for p in self.model.parameters()]
        self._rows.append(torch.stack([norm.float() for norm in norms(grads)]))

    def after_epoch(self) -> None:
        self._read()

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs. Waits for the device."""
        return {"norms": self._read()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` gave."""
        self._norms, self._rows = state["norms"], []

    def _read(self) -> Tensor:
        if self._rows:
            self._norms = torch.cat([self._norms, torch.stack(self._rows).cpu()])
            self._rows = []
        return self._norms

    @property
    def norms(self) -> Tensor:
        """The norms, float32 of shape (updates, parameters), on the CPU; NaN where there was no
        gradient. Reading it waits for the device."""
        return self._read()

    def plot(self) -> Any:
        """The norms over the updates, see `plot_gradients`."""
        return show(plot_gradients(self.names, self.norms.numpy()))
