"""Images with their channels innermost, as the fastest convolutions want them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from treadle.loop.events import Callback
from treadle.loop.nested import map_tensors


class ChannelsLast(Callback):
    """Puts the parameters of the model and its inputs with four axes (batch, channels, height,
    width) into the channels-last memory format.

    Only the order in memory changes, not the shapes. It is the fast one for convolutions in half
    precision on tensor cores, and for many on CPUs. The parameters stay so after the fit.

    Source: https://docs.pytorch.org/tutorials/intermediate/memory_format_tutorial.html

    >>> fast_convolutions = ChannelsLast()
    """

    order = -1

    def before_fit(self) -> None:
        for p in self.model.parameters():
            p.data = _channels_last(p.data)

    def before_batch(self) -> None:
        self.learn.xb = map_tensors(_channels_last, self.xb)


def _channels_last(t: Tensor) -> Any:
    return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t
