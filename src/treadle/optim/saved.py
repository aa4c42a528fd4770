"""Fit a saved state_dict to the optimizer that loads it: by name if it can be, checked always."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from treadle.errors import UsageError
from treadle.optim.chain import Chain, rehearse, stand_in
from treadle.optim.groups import BOOKKEEPING, Group, label
from treadle.shards import fitted


class Wrapped:
    """Holds a stat while torch loads it, which leaves alone what is neither tensor nor iterable.

    torch would cast every floating-point stat to the dtype of its parameter.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def unwrap(self, p: Tensor) -> Any:
        """A copy of the stat: its own dtype, on the device of `p`, spread as `p` is."""
        if isinstance(self.value, Tensor):
            return fitted(self.value, p)
        return copy.deepcopy(self.value)


def fit_saved(
    saved: Mapping[str, Any],
    groups: Sequence[Group],
    chains: Sequence[Chain],
    extra: Collection[str] = (),
) -> dict[str, Any]:
    """`saved` with its parameters in the order of `groups` and its stats wrapped.

    `chains` has the chain of each group, `extra` names stats beside those of a chain.
    Raises UsageError that says what differs.
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
        _check_hypers(g, theirs, mine, chains[g])
        new_ids = list(itertools.islice(ids, len(mine["params"])))
        for i, (new, old) in enumerate(zip(new_ids, _matched(g, theirs, mine), strict=True)):
            stats = saved["state"].get(old, {})
            _check_stats([name for name in stats if name not in extra], chains[g])
            _check_shapes(stats, mine, i, chains[g])
            if stats:
                state[new] = {name: Wrapped(value) for name, value in stats.items()}
        names = {"param_names": mine["param_names"]} if "param_names" in mine else {}
        fitted.append({**theirs, "params": new_ids, **names})
    return {**saved, "state": state, "param_groups": fitted}


def _matched(g: int, theirs: Group, mine: Group) -> list[Any]:
    """The saved parameter ids of group `g` in the order of this optimizer's parameters."""
    ids = list(theirs["params"])
    names = mine.get("param_names", [])
    if names and set(ids) == set(names):  # as torch.distributed.checkpoint puts it
        return list(names)
    if "param_names" in theirs and names and not all(isinstance(i, str) for i in ids):
        saved = dict(zip(theirs["param_names"], ids, strict=True))
        missing = [name for name in names if name not in saved]
        extra = [name for name in saved if name not in names]
        if missing or extra:
            raise UsageError(
                f"group {g} of the saved optimizer does not have the parameters of this one;"
                f" missing: {', '.join(missing) or 'none'};"
                f" not expected: {', '.join(extra) or 'none'}."
            )
        return [saved[name] for name in names]
    if len(ids) != len(mine["params"]):
        raise UsageError(
            f"group {g} of the saved optimizer has {len(ids)} parameters and this one"
            f" has {len(mine['params'])}; build it with the same parameters."
        )
    return ids


def _check_hypers(g: int, theirs: Group, mine: Group, chain: Chain) -> None:
    lacking = [name for name in mine if name in chain.hyper_names and name not in theirs]
    if lacking:
        raise UsageError(
            f"group {g} of the saved optimizer has no {', '.join(lacking)}: it was saved by"
            " another chain of steppers; build this optimizer as that one was built."
        )


def _check_stats(stats: Iterable[str], chain: Chain) -> None:
    unknown = [name for name in stats if chain.kept_known and name not in chain.kept]
    if unknown:
        raise UsageError(
            f"the saved state has {', '.join(unknown)}, which no stepper of this optimizer keeps;"
            " build it as the saved one was built."
        )


def _check_shapes(stats: Mapping[str, Any], mine: Group, i: int, chain: Chain) -> None:
    """Raise UsageError for a stat that has the shape of its parameter, but of another one."""
    p = mine["params"][i]
    odd = {k: v for k, v in stats.items() if isinstance(v, Tensor) and v.shape != p.shape}
    if not odd:
        return
    # Stats of a shape of their own are right (a norm, a factor of a preconditioner): a rehearsal
    # on a parameter without two equal dimensions shows which these are.
    model = stand_in(tuple(range(2, 2 + p.ndim)), p.dtype)
    hypers = {name: value for name, value in mine.items() if name not in BOOKKEEPING}
    own = rehearse(chain, hypers, model).stats
    for name, stat in odd.items():
        if isinstance(own.get(name), Tensor) and own[name].shape == model.shape:
            raise UsageError(
                f"{name} of {label(mine, i)} was saved with shape {tuple(stat.shape)}, but the"
                f" parameter has shape {tuple(p.shape)} here; build the model as the saved one was"
                " built."
            )
