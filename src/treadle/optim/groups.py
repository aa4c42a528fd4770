"""Parameter groups: read from what the user gives, with one value a group spread from a slice."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from treadle.errors import UsageError, nearest

Group = dict[str, Any]

# Keys of a group that are no hyper-parameters: torch's own, the marks of its schedulers, and which
# groups are the same layers.
BOOKKEEPING = frozenset(
    {"params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "layer_group"}
)


def read_groups(params: Any) -> list[Group]:
    """Groups from tensors, (name, tensor) pairs, lists of either (one a group), or torch's dicts.

    The dicts are new; each holds `params`, a list of tensors, and `param_names` if names were
    given. Raises UsageError for anything else, for a mixture, and if there is no parameter.
    """
    if isinstance(params, torch.nn.Module):
        raise UsageError(
            f"params is a module ({type(params).__name__}); give its parameters:"
            " model.parameters() or model.named_parameters()."
        )
    if isinstance(params, Tensor | str) or not isinstance(params, Iterable):
        raise UsageError(
            f"params must be an iterable of tensors, but a {type(params).__name__} was given; put"
            " a single tensor into a list."
        )
    if isinstance(params, set | frozenset):
        raise UsageError("params is a set, whose order changes from run to run; give a list.")
    items = list(params)
    kinds = {_kind(item) for item in items}
    if len(kinds) > 1:
        raise UsageError(
            f"params mixes {' and '.join(sorted(kinds))}; give one kind: tensors, (name, tensor)"
            " pairs, lists of these (one a group), or dicts with a 'params' key."
        )
    if kinds == {"dicts"}:
        groups = [read_group(item) for item in items]
    elif kinds == {"lists"}:
        groups = [read_group({"params": item}) for item in items]
    else:
        groups = [read_group({"params": items})]
    if not any(group["params"] for group in groups):
        raise UsageError("params holds no parameter; give at least one tensor to optimize.")
    if len({"param_names" in group for group in groups if group["params"]}) > 1:
        raise UsageError("some groups have parameter names and some have none; name all or none.")
    if any("param_names" in group for group in groups):
        for group in groups:
            group.setdefault("param_names", [])
    return groups


def _kind(item: Any) -> str:
    if isinstance(item, Tensor):
        return "tensors"
    if isinstance(item, Mapping):
        return "dicts"
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
        return "pairs"
    if isinstance(item, Iterable) and not isinstance(item, str):
        return "lists"
    return type(item).__name__


def read_group(given: Mapping[str, Any]) -> Group:
    """A copy of the group with `params` as a list of tensors, and the names, if any, beside it."""
    if "params" not in given:
        raise UsageError(f"a group has no 'params'; it has {', '.join(given) or 'nothing'}.")
    group = dict(given)
    params = group["params"]
    items = [params] if isinstance(params, Tensor) else list(params)
    kinds = {_kind(item) for item in items}
    if kinds == {"pairs"}:
        group["param_names"] = [name for name, _ in items]
        items = [p for _, p in items]
        kinds = {_kind(p) for p in items}
    if not kinds <= {"tensors"}:
        raise UsageError(f"a group must hold tensors, but this one has {', '.join(sorted(kinds))}.")
    group["params"] = items
    for i, p in enumerate(items):
        if torch.nn.parameter.is_lazy(p):
            raise UsageError(
                f"{label(group, i)} has no shape yet; run one batch through the model before you"
                " build the optimizer."
            )
        if not (p.is_leaf or p.retains_grad):
            raise UsageError(
                f"{label(group, i)} is the result of a computation, so it gets no gradient; give"
                " the tensor that it was computed from, or p.detach().requires_grad_()."
            )
    return group


def label(group: Group, i: int) -> str:
    """How to speak of parameter `i` of `group`: its name, or its place and shape."""
    if group.get("param_names"):
        return f"parameter {group['param_names'][i]}"
    p = group["params"][i]
    shape = "of no shape" if torch.nn.parameter.is_lazy(p) else f"of shape {tuple(p.shape)}"
    return f"parameter {i} of its group ({shape})"


def spread(name: str, value: Any, n: int) -> list[Any]:
    """One value of hyper-parameter `name` for each of `n` groups.

    A list, tuple or 1-d array has one value a group (or one for all); a slice is spread
    geometrically from start to stop, `slice(stop)` is stop for the last group and stop/10 for the
    others; anything else is for all groups. Where an end of the slice is not positive there is no
    geometric spread: then it is linear. Raises UsageError if the number of values does not fit.

    >>> spread("lr", slice(0.001, 0.1), 3)
    [0.001, 0.01, 0.1]
    >>> spread("lr", slice(1.0), 3)
    [0.1, 0.1, 1.0]
    >>> spread("wd", slice(0.0, 0.2), 3)
    [0.0, 0.1, 0.2]
    """
    if isinstance(value, slice):
        return _spread_slice(name, value, n)
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1):
        values = [_plain(v) for v in value]
        if len(values) not in (1, n):
            raise UsageError(
                f"{name} has {len(values)} values for {n} group{'s' * (n != 1)}; give one value,"
                f" or one a group (a value that is itself a tuple goes into a list: [{name}])."
            )
        return values * n if len(values) == 1 else values
    return [_plain(value)] * n


def _spread_slice(name: str, value: slice, n: int) -> list[float]:
    start, stop = _plain(value.start), _plain(value.stop)
    if stop is None or value.step is not None:
        raise UsageError(
            f"{name}={value} cannot be spread over groups; give slice(stop) or slice(start, stop)."
        )
    if n == 1:
        return [stop]
    if start is None:
        return [stop / 10] * (n - 1) + [stop]
    if start > 0 and stop > 0:
        middle = [start * (stop / start) ** (i / (n - 1)) for i in range(1, n - 1)]
    else:
        middle = [start + (stop - start) * i / (n - 1) for i in range(1, n - 1)]
    return [start, *middle, stop]


def layer_groups(groups: Sequence[Group]) -> list[int]:
    """For each group the number of its layer group: the same for neighbours of the same mark.

    >>> layer_groups([{"layer_group": 0}, {"layer_group": 0}, {"layer_group": 1}])
    [0, 0, 1]
    >>> layer_groups([{}, {}])
    [0, 1]
    """
    numbers: list[int] = []
    for i, group in enumerate(groups):
        mark = group.get("layer_group")
        same = i > 0 and mark is not None and mark == groups[i - 1].get("layer_group")
        numbers.append(0 if i == 0 else numbers[-1] + (not same))
    return numbers


def spread_groups(name: str, value: Any, groups: Sequence[Group]) -> list[Any]:
    """`spread` over layer groups, or over the groups where there is one value for each of these."""
    layers = layer_groups(groups)
    a_list = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)
    if a_list and len(value) == len(groups):
        return spread(name, value, len(groups))
    values = spread(name, value, layers[-1] + 1)
    return [values[layer] for layer in layers]


def _plain(value: Any) -> Any:
    """Python's own number for one of numpy's, so that what is saved is plain."""
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


class Hypers(Mapping[str, Any]):
    """A live view of the hyper-parameters of one group: reads and writes go to the group.

    It compares equal to a dict of the same values; a name that it does not know cannot be set.
    """

    def __init__(self, group: Group, names: Collection[str]) -> None:
        self._group, self.names = group, names  # names: also of those without a value

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        return self._group[name]

    def __setitem__(self, name: str, value: Any) -> None:
        check_hyper(name, self.names)
        self._group[name] = _plain(value)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._group if name in self.names)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))


def check_hyper(name: str, names: Collection[str]) -> None:
    """Raise UsageError if `name` is none of the hyper-parameters `names`."""
    if name not in names:
        raise UsageError(
            f"no stepper of this optimizer has a hyper-parameter {name}; {nearest(name, names)}"
        )


def check_tied(groups: Sequence[Group]) -> None:
    """Raise UsageError if a tensor is given twice: it would take two steps at once."""
    seen: dict[Tensor, tuple[int, int]] = {}
    for g, group in enumerate(groups):
        for i, p in enumerate(group["params"]):
            if p in seen:
                g0, i0 = seen[p]
                raise UsageError(
                    f"{label(groups[g0], i0)} in group {g0} and {label(group, i)} in group {g} are"
                    " one tensor, which would be stepped twice; give a tied parameter once"
                    " (model.parameters() does)."
                )
            seen[p] = g, i
