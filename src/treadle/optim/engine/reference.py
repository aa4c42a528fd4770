"""The definition of what it means to run a chain: parameter by parameter, stepper by stepper."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

from treadle.optim.chain import Chain


def run_chain(
    chain: Chain,
    params: Sequence[Tensor],
    hypers: Mapping[str, Any],
    state: MutableMapping[Tensor, dict[str, Any]],
    flags: Mapping[Tensor, Mapping[str, Any]],
) -> None:
    """Take one step of the parameters of one group; each has a gradient. Call it under no_grad.

    A stepper sees `hypers`, over them the parameter's `flags`, over them its `state`. The state is
    kept after every stepper, so an exception leaves the stats of the steppers that ran before it.
    An exception of a stepper carries a note that names the stepper and the parameter's shape.
    """
    for p in params:
        stats = state.setdefault(p, {})
        fixed = {**hypers, **flags.get(p, {})}
        for stepper in chain:
            try:
                out = stepper(p, {**fixed, **stats})
            except Exception as error:
                error.add_note(f"in stepper {stepper.name}, on a parameter of {tuple(p.shape)}")
                raise
            if isinstance(out, dict):  # a lambda returns whatever its last call did: no state
                stats.update(out)
