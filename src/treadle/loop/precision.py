"""Precision as a strategy of the loop: how a forward pass, a backward pass and a step are done.

One code path serves all three kinds: in full precision the loss scaler is simply switched off.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from treadle.errors import UsageError, nearest
from treadle.loop.nested import map_tensors

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_FULL = nullcontext()


class Precision:
    """Full precision ("fp32"), or mixed precision by autocast ("bf16", "fp16").

    Parameters, gradients and optimizer state stay in the model's own dtype. "fp16" on a GPU scales
    the loss so that small gradients survive (arXiv 1710.03740) and skips a step whose gradients
    overflowed. A CPU gains nothing from float16: there "fp16" computes in bfloat16, and says so.

    Raises:
        UsageError: if `name` is none of the three.
    """

    def __init__(self, name: str = "fp32") -> None:
        if name not in _DTYPES:
            raise UsageError(f"precision={name!r} is unknown; {nearest(name, _DTYPES)}")
        self.name = name
        self.device_type = "cpu"
        self.scaler = torch.amp.GradScaler(enabled=False)
        self._unscaled = False

    def to(self, device: torch.device) -> None:
        """Settle on the device that the model runs on; the loop does so when a fit starts."""
        on_cpu = device.type == "cpu"
        if self.name == "fp16" and on_cpu:
            warnings.warn(
                "fp16 was asked for and this run is on the CPU, which computes in bf16 instead; "
                "ask for bf16 to silence this.",
                UserWarning,
                stacklevel=2,
            )
        if device.type != self.device_type:
            self.device_type = device.type
            scaled = self.name == "fp16" and not on_cpu
            self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)

    def autocast(self) -> AbstractContextManager[Any]:
        """A context in which matrix products and convolutions are computed in half precision."""
        dtype = _DTYPES[self.name]
        if dtype is None:
            return _FULL
        return torch.autocast(
            self.device_type, dtype=torch.bfloat16 if self.device_type == "cpu" else dtype
        )

    def to_float(self, pred: Any) -> Any:
        """`pred` with its half-precision tensors in float32: a loss is no place to save bits."""
        return pred if self.name == "fp32" else map_tensors(_full, pred)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to the parameters', scaled where fp16 needs it."""
        if self._unscaled:  # and no step followed; the scaler would take these for unscaled too
            self.scaler.update()
            self._unscaled = False
        self.scaler.scale(loss).backward()

    def unscale(self, opt: Any) -> None:
        """Bring the gradients to their true size, for whoever reads or changes them before the
        step. Asking again before it does nothing more."""
        if not self._unscaled:
            self.scaler.unscale_(opt)
            self._unscaled = True

    def step(self, opt: Any) -> None:
        """Step the optimizer on true gradients; in fp16 not if one of them overflowed."""
        self.scaler.step(opt)
        self.scaler.update()
        self._unscaled = False

    def __repr__(self) -> str:
        return f"Precision({self.name!r})"


def _full(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t
