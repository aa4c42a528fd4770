"""What a step does beside its chain: clip, leave out, and round what it writes.

All of it is operations of the program, so every engine has it in the pass that it makes anyway, for
any chain. What must be known before is one number for all parameters, the scale of the gradients:
it is computed on the device and stays there. It is NaN if the step is to be left out; then every
write puts back what was there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from treadle.errors import UsageError, nearest
from treadle.optim.engine.rounding import SMALL
from treadle.optim.engine.tape import SCALE, Code, G, Kind, Outs, P, Type
from treadle.world import world

_APART = 0x13C6EF372FE94F  # of the seeds of parts: 2^53 over the golden ratio, or nearly

ROUNDINGS = ("nearest", "stochastic", "kahan")

COMPENSATION = "compensation"
"""The stat that keeps what rounding has taken from a parameter."""

THE_NORM: Code = (("norm2", G), ("cast:torch.float64", 0))
"""The program that gives the norm of a parameter's gradient."""


@dataclass(frozen=True)
class Guard:
    """What is asked for. `scaler` has the scale and the verdict of a torch GradScaler."""

    max_norm: float | None = None
    skip_nonfinite: bool = False
    rounding: str = "nearest"
    scaler: tuple[Tensor | None, Tensor | None] = field(default=(None, None), compare=False)

    def __post_init__(self) -> None:
        if self.max_norm is not None and not self.max_norm > 0:
            raise UsageError(f"max_norm={self.max_norm!r} was given; expected a number above 0.")
        if self.rounding not in ROUNDINGS:
            raise UsageError(
                f"rounding={self.rounding!r} is unknown; {nearest(self.rounding, ROUNDINGS)}"
            )

    def __str__(self) -> str:
        parts = [f"gradients clipped to norm {self.max_norm:g}"] if self.max_norm else []
        parts += ["non-finite steps skipped"] * self.skip_nonfinite
        parts += [f"{self.rounding} rounding"] * (self.rounding != "nearest")
        return f"guard: {', '.join(parts)}" if parts else ""

    @cached_property
    def measures(self) -> bool:
        """Whether the norm of all gradients is wanted."""
        return self.max_norm is not None or self.skip_nonfinite

    @cached_property
    def masks(self) -> bool:
        """Whether a step may be left out."""
        return self.skip_nonfinite or self.scaler[1] is not None

    @cached_property
    def scales(self) -> bool:
        """Whether gradients are multiplied by a scale, which may be NaN."""
        return self.measures or self.masks or self.scaler[0] is not None

    @cached_property
    def form(self) -> tuple[bool, bool, str]:
        """What makes another program."""
        return self.scales, self.masks, self.rounding

    def scale(self, norm: Tensor | None) -> Tensor:
        """The scale, from the norm of all gradients as they are; on the device, unread."""
        loss_scale, found_inf = self.scaler
        given = next(t for t in (norm, loss_scale, found_inf) if t is not None)
        scale = torch.ones((), dtype=torch.float64, device=given.device)
        if loss_scale is not None:
            scale = scale / loss_scale.to(scale)
        if norm is not None:
            norm = norm * scale
        if self.max_norm is not None:
            assert norm is not None
            # As in torch.nn.utils.clip_grad_norm_.
            scale = scale * (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        if self.skip_nonfinite:
            assert norm is not None
            scale = torch.where(norm.isfinite(), scale, math.nan)
        if found_inf is not None:
            scale = torch.where(found_inf.to(scale) == 0, scale, math.nan)
        return scale.reshape(())

    def compensates(self, dtype: torch.dtype) -> bool:
        """Whether a parameter of this dtype has a `COMPENSATION`."""
        return self.rounding == "kahan" and dtype in SMALL

    def new_stats(self, kind: Kind) -> dict[str, Type]:
        """The stats that parameters of `kind` lack."""
        lacks = self.compensates(kind.dtype) and COMPENSATION not in kind.stats
        return {COMPENSATION: Type(kind.dtype, True)} if lacks else {}

    def randomizes(self, dtype: torch.dtype) -> bool:
        """Whether each step of a parameter of this dtype needs a seed."""
        return self.rounding == "stochastic" and dtype in SMALL

    def seeds(self, dtype: torch.dtype, place: int = 0) -> list[float]:
        """The numbers that its operations need, after those of the chain; newly drawn.

        They are the same in all processes, whose own random numbers may differ, but for those that
        have another part, by its `place`, of what is rounded. Needs the other processes.
        """
        if not self.randomizes(dtype):
            return []
        seed = world().same(int(torch.randint(1 << 53, ())))
        return [float((seed + place * _APART) % (1 << 53))]

    def guarded(
        self, code: Code, outs: Outs, recorded: Sequence[str], kind: Kind
    ) -> tuple[Code, Outs]:
        """The operations `code` between those of this guard.

        `outs` are what parameter, gradient and the stats `recorded` become; `kind` has all stats.
        """
        lines: list[tuple[Any, ...]] = []
        instead: dict[Any, int] = {}  # of what the chain reads
        if self.scales:
            instead[G] = len(lines)
            lines.append(("mul", G, SCALE))
        if self.compensates(kind.dtype):
            instead[P] = len(lines)
            lines.append(("add", P, COMPENSATION))
        first = len(lines)

        def move(x: Any) -> Any:
            return x + first if isinstance(x, int) and x >= 0 else instead.get(x, x)

        lines += [(name, *map(move, operands)) for name, *operands in code]
        out: dict[Any, Any] = {name: name for name in (P, G, *kind.names)}
        out |= zip((P, G, *recorded), map(move, outs), strict=True)
        self._round(lines, out, kind.dtype)
        if self.scales:
            out[G] = G  # the scaled gradient is the step's own
        if self.masks:
            lines.append(("isfinite", SCALE))
            taken = len(lines) - 1
            for name, was in out.items():
                if was != name:
                    lines.append(("where", taken, was, name))
                    out[name] = len(lines) - 1
        return tuple(lines), tuple(out.values())

    def _round(self, lines: list[tuple[Any, ...]], out: dict[Any, Any], dtype: torch.dtype) -> None:
        """Round the new parameter, which is computed in float32."""
        exact = out[P]
        if dtype not in SMALL or self.rounding == "nearest":
            return
        if self.rounding == "stochastic":
            lines.append(("stochastic", exact, None))
            out[P] = len(lines) - 1
            return
        lines.append((f"cast:{dtype}", exact))
        out[P] = len(lines) - 1
        lines.append(("sub", exact, out[P]))
        out[COMPENSATION] = len(lines) - 1


UNGUARDED = Guard()


class Verdict:
    """Whether a step that could be left out was taken; read when somebody asks.

    On a GPU the scale is on its way to the host by then, so who asks a step later does not wait.
    """

    def __init__(self, scale: Tensor) -> None:
        self._scale, self._arrived = scale.detach(), None
        if scale.is_cuda:
            self._scale = torch.empty_like(scale, device="cpu", pin_memory=True)
            self._scale.copy_(scale, non_blocking=True)
            self._arrived = torch.cuda.current_stream(scale.device).record_event()

    @property
    def taken(self) -> bool:
        """Waits for the device if the step is not over."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return not math.isnan(self._scale.item())
