"""Precision as a strategy of the loop: how a forward pass, a backward pass and a step are done.

One code path serves all three kinds: in full precision there is no autocast, and the loss scaler is
switched off.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from treadle.errors import UsageError, nearest
from treadle.loop.late import LateNumbers
from treadle.loop.nested import map_tensors

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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
        self.dtype = _DTYPES[name]
        self.device_type = "cpu"
        self.scaler = torch.amp.GradScaler(enabled=False)
        self._scaled = self._unscaled = False  # the gradients at hand were, and are no longer
        self._loaded: dict[str, Any] = {}  # the scaler's state, until there is a scaler
        self._opt: Any = None  # whose skipped steps have been counted
        self._skipped = self._late = 0
        self._overflows = LateNumbers()

    @property
    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss, if it is enabled."""
        return self._scaler

    @scaler.setter
    def scaler(self, scaler: torch.amp.GradScaler) -> None:
        self._scaler, self._scales = scaler, scaler.is_enabled()

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
            self.dtype = torch.bfloat16
        if device.type != self.device_type:
            self.device_type, self.dtype = device.type, _DTYPES[self.name]
            scaled = self.name == "fp16" and not on_cpu
            self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
            self._load_scaler()

    def forward(self, model: Callable[..., Any], *xb: Any) -> Any:
        """`model(*xb)`, in mixed precision with matrix products and convolutions in half precision;
        what comes out is float32 again, for a loss is no place to save bits."""
        if self.dtype is None:
            return model(*xb)
        with torch.autocast(self.device_type, dtype=self.dtype):
            pred = model(*xb)
        return map_tensors(_full, pred)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to the parameters', scaled where fp16 needs it."""
        if self._scales:
            if self._unscaled:  # without a step; the scaler would take these for unscaled too
                self.scaler.update()
            self._scaled, self._unscaled = True, False
            loss = self.scaler.scale(loss)
        loss.backward()

    def unscale(self, opt: Any) -> None:
        """Bring the gradients to their true size, for whoever reads or changes them before the
        step. Asking again before it does nothing more."""
        if self._scaled and not self._unscaled:
            self.scaler.unscale_(_wrapped(opt))
            self._unscaled = True

    def step(self, opt: Any) -> int:
        """Step the optimizer on true gradients; in fp16 not if one of them overflowed.

        Returns by how many applied updates there are now more: 1, less those steps which by now
        have turned out to be skipped. Nothing waits for that: on a GPU it is known a step later.
        """
        if opt is not self._opt:
            self._opt, self._skipped = opt, getattr(opt, "skipped", 0) - self._late
            self._late = 0
        if self._scaled:
            self._step_scaled(opt)
        else:
            opt.step()
        skipped = getattr(opt, "skipped", None)
        if skipped is None:  # this optimizer does not count
            skipped = self._skipped + int(sum(self._overflows.arrived()))
        newly, self._skipped = skipped - self._skipped, skipped
        return 1 - newly

    def _step_scaled(self, opt: Any) -> None:
        inner = _wrapped(opt)
        self.scaler.step(inner)
        if not hasattr(opt, "skipped"):
            flags = list(self.scaler._found_inf_per_device(inner).values())
            self._overflows.send(torch.stack([f.to(flags[0].device) for f in flags]).amax())
        self.scaler.update()
        self._scaled = self._unscaled = False

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs: the name, the scale with its history, and how many steps turned out
        to be skipped that are still counted as updates. Waits for the device."""
        scaler = dict(self.scaler.state_dict() or self._loaded)
        late = getattr(self._opt, "skipped", self._skipped) - self._skipped
        return {"name": self.name, "scaler": scaler, "late": late}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the scale of `state_dict`.

        Raises:
            UsageError: if it is of another precision.
        """
        if state["name"] != self.name:
            raise UsageError(
                f"the state of {state['name']} was given to a learner that computes in {self.name};"
                f' make it with precision="{state["name"]}".'
            )
        self._loaded = dict(state["scaler"])
        self._opt, self._late = None, state["late"]
        self._load_scaler()

    def _load_scaler(self) -> None:
        if self._loaded and self._scales:
            self.scaler.load_state_dict(self._loaded)
            self._loaded = {}

    def __repr__(self) -> str:
        return f"Precision({self.name!r})"


def _wrapped(opt: Any) -> Any:
    """torch's own optimizer out of its wrapper: a fused one takes the scale and the verdict on the
    device, if the scaler knows it for what it is."""
    return getattr(opt, "opt", opt)


def _full(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t
