"""What a step is to do beside its chain: see `Guarded.guard`."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from treadle.optim.engine import Engine, Guard


class Guarded:
    """The part of an `Optimizer` that clips, leaves out, and rounds."""

    _guard: Guard
    _engine: Engine | None

    def guard(
        self,
        *,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        rounding: str = "nearest",
    ) -> Self:
        """Have every step take care of its gradients and of its rounding, in the same pass.

        Args:
            max_norm: clip the gradients of all parameters, as one vector, to this Euclidean norm,
                as `torch.nn.utils.clip_grad_norm_` does. Steppers see the clipped gradients;
                `p.grad` stays as it is.
            skip_nonfinite: if any gradient holds an infinity or a NaN, leave all parameters and all
                state as they were. `skipped` counts such steps. Nothing waits for the device, but
                for steps that make new state (the first) and on the reference engine.
            rounding: how parameters of 16 bits are written: "nearest"; "stochastic", up or down
                with the odds that make the mean exact, on bits from torch's CPU generator
                (arXiv 2010.06192); or "kahan", with the rest that rounding takes away kept as the
                stat `compensation`, of 16 bits too, and added before the next step
                (arXiv 2010.06192). The chain is then computed in float32. No effect on others.

        Of parameters that are spread over processes all of this is about the whole; all processes
        take each step together.

        Returns the optimizer. Each call says all anew. Raises UsageError for a `max_norm` that is
        not above 0 or an unknown rounding.

        >>> import torch
        >>> from treadle.optim import SGD
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> opt = SGD([w], lr=1.0).guard(max_norm=1.0, skip_nonfinite=True)
        >>> w.grad = torch.tensor([30.0, 40.0])
        >>> opt.step()
        >>> w.data
        tensor([2.4000, 3.2000])
        >>> w.grad = torch.tensor([0.0, float("nan")])
        >>> opt.step()
        >>> w.data, opt.skipped
        (tensor([2.4000, 3.2000]), 1)
        """
        self._guard = Guard(max_norm, skip_nonfinite, rounding)
        return self

    @property
    def skipped(self) -> int:
        """How many steps have done nothing, as `guard` or a GradScaler asked, so far as is known.

        On a GPU the last step counts when the next one begins, or after `state_dict()`.
        """
        return self._engine.skipped if self._engine is not None else 0

    def _guard_now(self) -> Guard:
        """The guard of this step."""
        # torch.amp.GradScaler sets these for the time of a step, as it does for torch's own.
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scale is None and found_inf is None:
            return self._guard
        return replace(self._guard, scaler=(scale, found_inf))
