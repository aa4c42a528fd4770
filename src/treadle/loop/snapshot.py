"""The whole state of a fit under way, so that another process can go on with it bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any, Literal

from treadle.errors import UsageError
from treadle.loop.events import Callback
from treadle.loop.order import sort_callbacks
from treadle.loop.state import all_generators, model_tensors, set_all_generators
from treadle.loop.training import TrainingLoop
from treadle.shards import cut, put

_LOOP_FIELDS = "training n_epoch epoch n_iter iter updates planned_updates".split()


Batches = int | Literal["all"] | None


def snapshot(loop: TrainingLoop, batches: Batches) -> dict[str, Any]:
    """Everything that decides how the fit goes on, as plain containers, numbers and tensors.

    `batches` is how many of the epoch's training batches are done; "all" where its validation
    begins, None between epochs. What has no place in it: the data, the code, and the clock. The
    tensors are not copied. Of those that are spread over several processes each has its part.
    """
    params = dict(loop.model.named_parameters())
    return {
        "model": dict(model_tensors(loop.model)),
        "optimizer": _by_name(loop.opt.state_dict()),
        "fit": {
            "place": {"epoch": loop.epoch + (batches is None), "batches": batches},
            "loop": {name: getattr(loop, name) for name in _LOOP_FIELDS},
            "gradients": {name: p.grad for name, p in params.items() if p.grad is not None},
            "frozen": [name for name, p in params.items() if not p.requires_grad],
            "frozen_groups": getattr(loop.opt, "frozen_idx", 0),
            "window": None if loop.window is None else loop.window.state_dict(),
            "precision": loop.precision.state_dict(),
            "loaders": [_of_loader(dl) for dl in loop.dls],
            "callbacks": {name: cb.state_dict() for name, cb in _with_state(loop)},
            "generators": all_generators(loop),
        },
    }


def check_fits(loop: TrainingLoop, state: Mapping[str, Any]) -> None:
    """Raise UsageError that says what differs, if `state` is of another learner than this one."""
    mine, theirs, fit = dict(model_tensors(loop.model)), state["model"], state["fit"]
    _check_same("model", "parameters and buffers", theirs.keys(), mine.keys(), mine.keys())
    for name, t in mine.items():
        if t.shape != theirs[name].shape:
            raise UsageError(
                f"{name} has the shape {tuple(theirs[name].shape)} in the checkpoint and "
                f"{tuple(t.shape)} in this model; build the model that was trained."
            )
    there = {name: bool(cb.state_dict()) for name, cb in _with_state(loop)}
    keeping = {name for name, keeps in there.items() if keeps}
    saved = {name for name, kept in fit["callbacks"].items() if kept}
    _check_same("learner", "callbacks", saved, there.keys(), keeping)
    if fit["precision"]["name"] != loop.precision.name:
        raise UsageError(
            f"the checkpoint was computed in {fit['precision']['name']} and this learner computes"
            f' in {loop.precision.name}; make it with precision="{fit["precision"]["name"]}".'
        )
    if len(fit["loaders"]) != len(loop.dls):
        raise UsageError(
            f"the checkpoint has {len(fit['loaders'])} loaders and this learner "
            f"{len(loop.dls)}; give the data that were trained on."
        )
    for i, (dl, saved_one) in enumerate(zip(loop.dls, fit["loaders"], strict=True)):
        _check_loader(i, dl, saved_one)


def put_back(loop: TrainingLoop, state: Mapping[str, Any]) -> None:
    """Make the fit under way the one that `snapshot` was taken of, but for its place."""
    fit = state["fit"]
    for name in _LOOP_FIELDS:
        setattr(loop, name, fit["loop"][name])
    loop.opt.load_state_dict(_by_place(state["optimizer"], loop.opt))
    loop.opt.frozen_idx = fit["frozen_groups"]
    for name, t in model_tensors(loop.model):
        put(t, state["model"][name])
    for name, p in loop.model.named_parameters():
        p.requires_grad_(name not in fit["frozen"])
        grad = fit["gradients"].get(name)
        p.grad = None if grad is None else cut(grad, p).to(p.device, p.dtype, copy=True)
    if loop.window is not None:
        loop.window.load_state_dict(fit["window"])
    loop.precision.load_state_dict(fit["precision"])
    for dl, saved in zip(loop.dls, fit["loaders"], strict=True):
        if saved["state"] is not None:
            dl.load_state_dict(saved["state"])
    for name, cb in _with_state(loop):
        if name in fit["callbacks"] and (loop.parallel.world.is_main or not cb.on_main):
            cb.load_state_dict(fit["callbacks"][name])
    set_all_generators(loop, fit["generators"])


def can_seek(dl: Any) -> bool:
    """Whether a loader can be set to any of its batches, without drawing those before."""
    return hasattr(dl, "state_dict") and hasattr(dl, "load_state_dict")


def _of_loader(dl: Any) -> dict[str, Any]:
    return {**_sizes(dl), "state": dl.state_dict() if can_seek(dl) else None}


def _sizes(dl: Any) -> dict[str, int | None]:
    """How many samples there are, and how many a batch has in all processes together."""
    bs = getattr(dl, "bs", None)
    return {"n": getattr(dl, "n", None), "bs": getattr(dl, "total_bs", bs)}


def _check_loader(i: int, dl: Any, saved: Mapping[str, Any]) -> None:
    whats = {"n": "samples", "bs": "samples a batch"}
    for name, mine in _sizes(dl).items():
        if mine != saved[name]:
            raise UsageError(
                f"loader {i} had {saved[name]} {whats[name]} in the run of the checkpoint and has "
                f"{mine} here; give the data and the batch size that were trained with, for all "
                "processes together (global_bs=)."
            )


def _check_same(
    whose: str, what: str, saved: Set[str], there: Set[str], expected: Set[str]
) -> None:
    missing, extra = sorted(saved - there), sorted(expected - saved)
    if missing or extra:
        raise UsageError(
            f"the {whose} does not have the {what} of the checkpoint; missing: "
            f"{', '.join(missing[:5]) or 'none'}; not expected: {', '.join(extra[:5]) or 'none'}. "
            "Make the learner by the code that made the one that was trained."
        )


def _with_state(loop: TrainingLoop) -> Iterator[tuple[str, Callback]]:
    """The callbacks by name, in the order in which they run. Those made of bare functions have
    neither a name of their own nor a state."""
    for cb in sort_callbacks(loop.cbs):
        if type(cb) is not Callback:
            yield cb.name, cb


def _by_name(saved: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state with the names of its parameters, where it knows them, for numbers."""
    groups = saved["param_groups"]
    named = all("param_names" in group for group in groups)
    names = {
        i: name
        for group in groups
        for i, name in zip(group["params"], group["param_names"] if named else (), strict=named)
    }
    return {
        **saved,
        "state": {names.get(i, i): stats for i, stats in saved["state"].items()},
        "param_groups": [
            {**group, "params": [names.get(i, i) for i in group["params"]]} for group in groups
        ],
    }


def _by_place(saved: Mapping[str, Any], opt: Any) -> dict[str, Any]:
    """What `_by_name` was given, the parameters counted as `opt` has them."""
    names = [name for group in opt.param_groups for name in group.get("param_names", ())]
    places: dict[Any, int] = {name: i for i, name in enumerate(names)}
    unknown = [
        str(name)
        for group in saved["param_groups"]
        for name in group["params"]
        if isinstance(name, str) and name not in places
    ]
    if unknown:
        raise UsageError(
            f"the optimizer of the checkpoint has {', '.join(unknown[:5])}, which this one lacks; "
            "build it with the same parameters."
        )
    return {
        **saved,
        "state": {places.get(name, name): stats for name, stats in saved["state"].items()},
        "param_groups": [
            {**group, "params": [places.get(name, name) for name in group["params"]]}
            for group in saved["param_groups"]
        ],
    }
