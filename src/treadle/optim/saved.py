"""Fit a saved state_dict to the optimizer that loads it: by name if it can be, checked always."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from treadle.errors import UsageError
from treadle.optim.groups import Group


class Wrapped:
    """Holds a stat while torch loads it, which leaves alone what is neither tensor nor iterable.

    torch would cast every floating-point stat to the dtype of its parameter.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def unwrap(self, p: Tensor) -> Any:
        """A copy of the stat: its own dtype, on the device of `p`."""
        value = copy.deepcopy(self.value)
        return value.to(p.device) if isinstance(value, Tensor) else value


def fit_saved(
    saved: Mapping[str, Any],
    groups: Sequence[Group],
    hyper_names: Collection[str],
    stat_names: Collection[str] | None,
) -> dict[str, Any]:
    """`saved` with its parameters in the order of `groups` and its stats wrapped.

    Raises UsageError that says what differs. `stat_names` is None if what the chain keeps is not
    known.
    """
    if not {"state", "param_groups"} <= saved.keys():
        raise UsageError(
            f"this is no optimizer's state_dict: it has {', '.join(saved) or 'nothing'}, and"
            " state and param_groups were expected."
        )
    if len(saved["param_groups"]) != len(groups):
        raise UsageError(
            f"the saved optimizer has {len(saved['param_groups'])} groups and this one has"
            f" {len(groups)}; build it with the same groups."
        )
    ids = itertools.count()
    state: dict[int, dict[str, Wrapped]] = {}
    fitted: list[Group] = []
    for g, (theirs, mine) in enumerate(zip(saved["param_groups"], groups, strict=True)):
        _check_hypers(g, theirs, mine, hyper_names)
        new_ids = list(itertools.islice(ids, len(mine["params"])))
        for new, old in zip(new_ids, _matched(g, theirs, mine), strict=True):
            stats = saved["state"].get(old, {})
            _check_stats(stats, stat_names)
            if stats:
                state[new] = {name: Wrapped(value) for name, value in stats.items()}
        names = {"param_names": mine["param_names"]} if "param_names" in mine else {}
        fitted.append({**theirs, "params": new_ids, **names})
    return {**saved, "state": state, "param_groups": fitted}


def _matched(g: int, theirs: Group, mine: Group) -> list[Any]:
    """The saved parameter ids of group `g` in the order of this optimizer's parameters."""
    if "param_names" in theirs and "param_names" in mine:
        saved = dict(zip(theirs["param_names"], theirs["params"], strict=True))
        missing = [name for name in mine["param_names"] if name not in saved]
        extra = [name for name in saved if name not in mine["param_names"]]
        if missing or extra:
            raise UsageError(
                f"group {g} of the saved optimizer does not have the parameters of this one;"
                f" missing: {', '.join(missing) or 'none'};"
                f" not expected: {', '.join(extra) or 'none'}."
            )
        return [saved[name] for name in mine["param_names"]]
    if len(theirs["params"]) != len(mine["params"]):
        raise UsageError(
            f"group {g} of the saved optimizer has {len(theirs['params'])} parameters and this one"
            f" has {len(mine['params'])}; build it with the same parameters."
        )
    return list(theirs["params"])


def _check_hypers(g: int, theirs: Group, mine: Group, hyper_names: Collection[str]) -> None:
    lacking = [name for name in mine if name in hyper_names and name not in theirs]
    if lacking:
        raise UsageError(
            f"group {g} of the saved optimizer has no {', '.join(lacking)}: it was saved by"
            " another chain of steppers; build this optimizer as that one was built."
        )


def _check_stats(stats: Mapping[str, Any], stat_names: Collection[str] | None) -> None:
    unknown = [name for name in stats if stat_names is not None and name not in stat_names]
    if unknown:
        raise UsageError(
            f"the saved state has {', '.join(unknown)}, which no stepper of this optimizer keeps;"
            " build it as the saved one was built."
        )
