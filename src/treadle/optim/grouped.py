"""What can be done to parameter groups without knowing the rule that steps them.

A *layer group* is what freezing and slices count: one group, or several neighbours that carry the
same mark `layer_group`, as when rules cut the parameters of the same layers into several groups.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from treadle.errors import UsageError
from treadle.optim.groups import Group, Hypers, check_hyper, layer_groups, spread_groups


class Grouped:
    """Hyper-parameters by name and freezing, for whatever has torch's `param_groups`."""

    param_groups: list[Group]
    frozen_idx: int
    _flags: dict[Tensor, dict[str, Any]]

    @property
    @abstractmethod
    def hypers(self) -> list[Hypers]:
        """A live view of each group's hyper-parameters that have a value."""

    @property
    def hyper_names(self) -> set[str]:
        """The hyper-parameters that some group knows."""
        return set().union(*(hypers.names for hypers in self.hypers))

    def set_hyper(self, name: str, value: Any) -> None:
        """Set one hyper-parameter in all groups whose rule knows it.

        `value` is one value; or a list, tuple or 1-d array with one a group; or
        `slice(start, stop)`, spread geometrically from the first layer group to the last (linearly
        if an end is not positive); or `slice(stop)`: stop for the last, stop/10 for the others.
        Raises UsageError for a name that no group knows, with the nearest that one does.
        """
        views = self.hypers
        check_hyper(name, set().union(*(hypers.names for hypers in views)))
        values = spread_groups(name, value, self.param_groups)
        for hypers, v in zip(views, values, strict=True):
            if name in hypers.names:
                hypers[name] = v

    def set_hypers(self, **hypers: Any) -> None:
        """`set_hyper` for each keyword."""
        for name, value in hypers.items():
            self.set_hyper(name, value)

    @property
    def param_lists(self) -> list[list[Tensor]]:
        """The parameters, one list a group."""
        return [group["params"] for group in self.param_groups]

    def freeze_to(self, n: int) -> None:
        """Freeze the layer groups before `n` and thaw the others; -1 is the last one.

        A frozen parameter requires no gradient, loses the one it has, and is not stepped; one
        flagged `force_train=True` stays trainable. Raises UsageError if there is no group `n`.
        """
        layers = layer_groups(self.param_groups)
        count = layers[-1] + 1
        if not -count <= n <= count:
            raise UsageError(f"freeze_to({n}) was called, but there are only {count} groups.")
        self.frozen_idx = n % count if n < 0 else n
        for layer, params in zip(layers, self.param_lists, strict=True):
            for p in params:
                trains = layer >= self.frozen_idx or self._flags.get(p, {}).get("force_train")
                p.requires_grad_(bool(trains))
                if not trains:
                    p.grad = None

    def freeze(self) -> None:
        """Freeze all layer groups but the last. Raises UsageError if there is only one."""
        if layer_groups(self.param_groups)[-1] == 0:
            raise UsageError(
                "freeze() freezes all groups but the last, and there is only one; build the"
                " optimizer with a list of lists of parameters, one a group."
            )
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Thaw all groups."""
        self.freeze_to(0)

    def _check_mine(self, params: list[Tensor]) -> None:
        """Raise UsageError for a tensor that is in no group."""
        mine = {p for group in self.param_groups for p in group["params"]}
        for p in params:
            if p not in mine:
                raise UsageError(
                    f"a tensor of shape {tuple(p.shape)} is not in this optimizer, so it takes no"
                    " flags here; give parameters that the optimizer was built with."
                )
