"""Parameter rules: which parameters get which hyper-parameters, or another chain.

A rule is resolved into groups when the optimizer's parameters are listed, so nothing else need know
of rules: `Optimizer(param_rules(model, ...), ...)`, and in a learner
`splitter=lambda model: param_rules(model, ...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from treadle.errors import UsageError, nearest
from treadle.optim.chain import read_chain
from treadle.optim.groups import Group, layer_groups, read_groups

# Where a parameter is found: (module that owns it, full name). A tied one has several places.
Places = Sequence[tuple[nn.Module | None, str]]


class Rule:
    """What the parameters that match all the given conditions get.

    Args:
        module: the class, or a tuple of classes, of the module that owns the parameter.
        name: a pattern for its full name, with * and ?, as in "encoder.*.bias".
        ndim: its number of dimensions, or several: `(0, 1)`, `range(2, 5)`.
        cbs: a chain of steppers in place of the optimizer's.
        hypers: hyper-parameters. `do_wd=False` and `lr_mult=0.1` last, whatever a learner or a
            schedule sets; a value of `lr` or `wd` lasts until these are set for all groups.

    Raises UsageError for a rule without a condition or without an effect.
    """

    def __init__(
        self,
        module: type[nn.Module] | tuple[type[nn.Module], ...] | None = None,
        *,
        name: str | None = None,
        ndim: int | Container[int] | None = None,
        cbs: Any = None,
        **hypers: Any,
    ) -> None:
        self.module, self.name, self.ndim = module, name, ndim
        self.gives = {**hypers, **({} if cbs is None else {"cbs": cbs})}
        if module is None and name is None and ndim is None:
            raise UsageError("a rule has no condition; give a module class, name= or ndim=.")
        if not self.gives:
            raise UsageError(f"{self} has no effect; give it hyper-parameters or cbs=.")

    def matches(self, p: Tensor, places: Places) -> bool:
        """Whether the parameter `p`, found at `places`, gets what this rule gives."""
        if self.ndim is not None:
            dims = (self.ndim,) if isinstance(self.ndim, int) else self.ndim
            if p.ndim not in dims:
                return False
        return any(
            (self.module is None or isinstance(module, self.module))
            and (self.name is None or fnmatchcase(name, self.name))
            for module, name in places
        )

    def __repr__(self) -> str:
        kinds = self.module if isinstance(self.module, tuple) else (self.module,)
        parts = ["|".join(kind.__name__ for kind in kinds if kind is not None)]
        parts += [] if self.name is None else [self.name]
        parts += [] if self.ndim is None else [f"ndim={self.ndim}"]
        return f"Rule({', '.join(part for part in parts if part)})"


class ParamGroups(list[Group]):
    """torch's list of groups; printed, it says which parameters are in which and what they get."""

    def __repr__(self) -> str:
        lines = []
        for group in self:
            gives = [f"{k}={v!r}" for k, v in group.items() if k not in _KEYS]
            gives += [str(read_chain(group["cbs"]))] if "cbs" in group else []
            lines.append(f"{group['name']}: {', '.join(gives) or 'nothing of its own'}")
            lines += [
                f"  {name} {tuple(p.shape)}"
                for name, p in zip(group["param_names"], group["params"], strict=True)
            ]
        return "\n".join(lines)


_KEYS = {"params", "param_names", "name", "layer_group", "cbs"}


def param_rules(
    model: nn.Module, *rules: Rule, splitter: Callable[[nn.Module], Any] | None = None
) -> ParamGroups:
    """The trainable parameters of `model`, with their names, in groups of equal treatment.

    Every rule that matches a parameter applies to it, a later one over an earlier one. With a
    `splitter` (`model -> list of lists of parameters`) its lists are cut further by the rules, and
    freezing and slices still count those lists: each is one layer group.

    Raises UsageError, naming the rule, if one matches nothing.

    >>> from treadle.optim import Adam
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    >>> groups = param_rules(
    ...     model, Rule(name="*bias", do_wd=False), Rule(nn.LayerNorm, do_wd=False, lr_mult=0.1)
    ... )
    >>> groups
    no rule: nothing of its own
      0.weight (3, 2)
    Rule(*bias): do_wd=False
      0.bias (3,)
    Rule(LayerNorm): do_wd=False, lr_mult=0.1
      1.weight (3,)
    Rule(*bias) Rule(LayerNorm): do_wd=False, lr_mult=0.1
      1.bias (3,)
    >>> [hypers["lr_mult"] for hypers in Adam(groups, lr=0.01).hypers if "lr_mult" in hypers]
    [0.1, 0.1]
    """
    places: dict[Tensor, list[tuple[nn.Module | None, str]]] = {}
    for prefix, module in model.named_modules():
        for name, p in module.named_parameters(prefix, recurse=False):
            places.setdefault(p, []).append((module, name))
    listed = read_groups(model.parameters() if splitter is None else splitter(model))
    for layer, group in zip(layer_groups(listed), listed, strict=True):
        group["layer_group"] = layer
        group["params"] = [p for p in group["params"] if p.requires_grad]
        strangers = [p for p in group["params"] if p not in places]
        if strangers:
            raise UsageError(
                f"the splitter gives a tensor of shape {tuple(strangers[0].shape)} that is no"
                " parameter of the model; give it the model that the rules are for."
            )
        group["param_names"] = [places[p][0][1] for p in group["params"]]
    for rule in rules:
        mine = (p for group in listed for p in group["params"])
        if not any(rule.matches(p, places[p]) for p in mine):
            raise UsageError(_nothing(rule, places))
    return ParamGroups(cut(listed, rules, places))


def split_matrices(params: Any, cbs: Any, **hypers: Any) -> list[Group]:
    """Groups of `params` in which what has 2 or more dimensions is stepped by the chain `cbs`.

    A group that has a chain of its own stays as it is, whatever its dimensions: that is how an
    embedding or an output layer is kept out. `params` are what an `Optimizer` takes.
    """
    listed = read_groups(params)
    done: list[Group] = []
    for layer, group in zip(layer_groups(listed), listed, strict=True):
        group["layer_group"] = layer
        if "cbs" in group:
            done.append(group)
            continue
        title = f"{group['name']}: " if "name" in group else ""
        for part in cut([group], [Rule(ndim=range(2, 100), cbs=cbs, **hypers)], {}):
            part["name"] = title + ("matrices" if "cbs" in part else "others")
            done.append(part)
    return done


def cut(
    groups: Sequence[Group], rules: Sequence[Rule], places: Mapping[Tensor, Places]
) -> list[Group]:
    """`groups`, each cut into groups of parameters to which the same rules apply."""
    done: list[Group] = []
    for group in groups:
        names = group.get("param_names", [""] * len(group["params"]))
        parts: dict[tuple[Rule, ...], Group] = {}
        for p, name in zip(group["params"], names, strict=True):
            found = places.get(p, [(None, name)])
            applied = tuple(rule for rule in rules if rule.matches(p, found))
            part = parts.setdefault(applied, _part(group, applied))
            part["params"].append(p)
            if "param_names" in part:
                part["param_names"].append(name)
        done += parts.values() or [_part(group, ())]  # an empty one still counts as layers
    return done


def _part(group: Group, applied: Sequence[Rule]) -> Group:
    """A group without parameters as yet, with what `applied` give over what `group` has."""
    part = {**group, "params": []}
    if "param_names" in group:
        part["param_names"] = []
    for rule in applied:
        part |= rule.gives
    part.setdefault("name", " ".join(map(repr, applied)) or "no rule")
    return part


def _nothing(rule: Rule, places: Mapping[Tensor, Places]) -> str:
    """The sentence for a rule that matches no parameter."""
    found = [place for several in places.values() for place in several]
    if rule.name is not None and not any(fnmatchcase(name, rule.name) for _, name in found):
        why = f"no parameter has such a name; {nearest(rule.name, [name for _, name in found])}"
    else:
        kinds = sorted({type(module).__name__ for module, _ in found})
        why = f"the model's parameters belong to {', '.join(kinds)}."
    return f"{rule!r} matches no parameter of the model: {why}"
