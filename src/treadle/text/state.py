"""The hidden state that a recurrent model carries from a batch to the next."""

from __future__ import annotations

from torch import Tensor

__all__ = ["detached", "nothing", "zeros_or_carried"]


def zeros_or_carried(state: Tensor | None, x: Tensor, n_layers: int, n_hid: int) -> Tensor:
    """A state (n_layers, B, n_hid) for the input `x` (B, ...), of its type and device: `state` if
    there is one, else zeros. Where the batch is larger than the one before, the further rows begin
    at zero; where it is smaller, the first rows go on.

    >>> import torch
    >>> zeros_or_carried(torch.ones(1, 3, 1), torch.zeros(2, 7), 1, 1).flatten().tolist()
    [1.0, 1.0]
    >>> zeros_or_carried(torch.ones(1, 1, 1), torch.zeros(2, 7), 1, 1).flatten().tolist()
    [1.0, 0.0]
    """
    rows = x.shape[0]
    if state is not None and state.shape[1] == rows:
        return state.to(x)
    fresh = x.new_zeros(n_layers, rows, n_hid)
    if state is not None:
        n = min(rows, state.shape[1])
        fresh[:, :n] = state[:, :n]
    return fresh


def detached(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The state without its history: gradients end at the edge of a batch."""
    return tuple(part.detach() for part in state)


def nothing() -> None:
    """What a module without a state does to reset."""
