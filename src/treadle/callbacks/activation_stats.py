"""What the activations of each layer look like while the model trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from treadle.callbacks.hooks import HookCallback, Hooks
from treadle.callbacks.layer_plots import plot_color_dim, plot_layer_stats
from treadle.errors import UsageError, nearest
from treadle.loop.nested import map_tensors
from treadle.plots import show

STATS = ("mean", "std", "near_zero")
NEAR_ZERO = 0.05
BINS, TOP = 40, 10.0


class ActivationStats(HookCallback):
    """Keeps mean, standard deviation, near-zero share and a histogram of the output of each layer
    in the training batches of the last fit.

    Near zero is an absolute value of at most 0.05. The histogram is of absolute values: shares of
    them in 40 bins of equal width from 0 to 10, greater ones in the last. All of it stays on the
    device until the epoch ends or somebody reads it, so a training step does not wait; it is 172
    bytes a layer and batch. Of several processes each sees its own part of the batch.

    Args:
        modules: the modules to look at; by default those that have parameters and no parts.
        every: look in every so many batches of an epoch only.

    Attributes:
        layers: the modules by their names in the model.
        batches: the training batches that were looked at, counted from the start of the fit.

    Raises:
        UsageError: if `every` is below 1.

    >>> stats = ActivationStats(every=10)
    """

    order = -20
    reports = True

    def __init__(self, modules: Iterable[nn.Module] | None = None, every: int = 1) -> None:
        super().__init__(modules, every)

    def before_fit(self) -> None:
        super().before_fit()
        self.batches: list[int] = []
        self._rows: list[Tensor] = []
        self._values = torch.empty(0, len(self.layers), len(STATS) + BINS)

    def hook(self, module: nn.Module, inputs: Any, output: Any) -> Tensor:
        return _describe(output)

    def after_batch(self) -> None:
        super().after_batch()
        if any(row is not None for row in self.hooks.stored):
            self._rows.append(_stacked(self.hooks.stored))
            self.batches.append(self.epoch * self.n_iter + self.iter)
        self.hooks = Hooks([], self.hook)  # what was seen does not count again

    def after_epoch(self) -> None:
        self._read()

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs. Waits for the device."""
        return {"batches": list(self.batches), "values": self._read()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` gave."""
        self.batches, self._values, self._rows = list(state["batches"]), state["values"], []

    def _read(self) -> Tensor:
        """(batches, layers, numbers), on the CPU. Waits for the device."""
        if self._rows:
            self._values = torch.cat([self._values, torch.stack(self._rows).cpu()])
            self._rows = []
        return self._values

    def layer_stats(self, layer: int | str) -> dict[str, list[float]]:
        """`mean`, `std` and `near_zero` of a layer, given by its name or number: a value a batch,
        NaN where it did not run. Waits for the device.

        Raises:
            UsageError: if there is no such layer.
        """
        _, values = self._of(layer)
        return {name: values[:, i].tolist() for i, name in enumerate(STATS)}

    def hist(self, layer: int | str) -> Tensor:
        """The histograms of a layer: shares, float32 of shape (batches, 40). Else as above."""
        return self._of(layer)[1][:, len(STATS) :]

    def plot_layer_stats(self, layer: int | str) -> Any:
        """The `layer_stats` of a layer over the batches."""
        name, _ = self._of(layer)
        return show(plot_layer_stats(name, self.batches, self.layer_stats(layer)))

    def color_dim(self, layer: int | str) -> Any:
        """The histograms of a layer as colours over the batches; see `plot_color_dim`."""
        name, values = self._of(layer)
        return show(plot_color_dim(name, self.batches, values[:, len(STATS) :].numpy(), TOP))

    def _of(self, layer: int | str) -> tuple[str, Tensor]:
        """The name of a layer and its numbers, (batches, numbers)."""
        index = _index(list(self.layers), layer)
        return list(self.layers)[index], self._read()[:, index]


def _describe(output: Any) -> Tensor:
    """The numbers kept of what a layer gave, on its device; of several tensors, of the first."""
    tensors: list[Tensor] = []
    map_tensors(tensors.append, output)
    x = tensors[0].float()
    std, mean = torch.std_mean(x, correction=0)
    size = x.abs()
    near_zero = (size <= NEAR_ZERO).float().mean()
    counts = torch.histc(size.clamp(max=TOP), BINS, 0, TOP)
    return torch.cat([torch.stack([mean, std, near_zero]), counts / x.numel()])


def _stacked(rows: list[Tensor | None]) -> Tensor:
    """The rows of all layers; NaN for those that did not run."""
    unseen = torch.full_like(next(row for row in rows if row is not None), torch.nan)
    return torch.stack([unseen if row is None else row for row in rows])


def _index(names: list[str], layer: int | str) -> int:
    if layer in names:
        return names.index(str(layer))
    if isinstance(layer, int) and layer in range(-len(names), len(names)):
        return layer
    hint = nearest(layer, names) if isinstance(layer, str) else f"there are {len(names)} layers."
    raise UsageError(f"there are no statistics of layer {layer!r}; {hint}")
