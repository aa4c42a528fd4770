"""What a fit would do to the hyper-parameters, found out without training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from treadle.callbacks.scheduler import ParamScheduler
from treadle.interrupts import scoped
from treadle.loop.events import Callback, CancelBatchException, CancelFitException
from treadle.loop.training import TrainingLoop, assigned


class Rehearsal(Callback):
    """Cancels each batch, but counts it as an update and notes the hyper-parameters it had."""

    order = 99  # after all that set them

    def __init__(self) -> None:
        self.columns: list[dict[str, list[float]]] = []  # one a parameter group

    def before_batch(self) -> None:
        learn = self.learn
        for g, hypers in enumerate(learn.hypers):
            if g == len(self.columns):
                self.columns.append({})
            for name, value in hypers.items():
                self.columns[g].setdefault(name, []).append(value)
        learn.updates += 1
        if learn.updates >= learn.planned_updates:
            raise CancelFitException
        raise CancelBatchException


class _BlankLoader(list[tuple[()]]):
    """As many batches as `loader` has, with nothing in them."""

    def __init__(self, loader: Any) -> None:
        super().__init__([()] * len(loader))
        sizes = (getattr(loader, name, None) for name in ("total_bs", "bs", "batch_size"))
        self.bs = next(filter(None, sizes), None)


class _BlankLoaders(list[_BlankLoader]):
    """One of these, to train on."""

    @property
    def train(self) -> _BlankLoader:
        return self[0]


def planned_hypers(
    learn: TrainingLoop, fit: Callable[..., object], *args: Any, **kwargs: Any
) -> dict[str, list[float]]:
    """The hyper-parameters that move, or else `lr`, update by update, in all fits that
    `fit(*args, **kwargs)` makes of `learn`; as `name (group i)` where the groups differ.
    """
    rehearsal = Rehearsal()
    others = [cb for cb in learn.cbs if not isinstance(cb, ParamScheduler)]
    with (
        _put_back(learn),
        assigned(learn, "dls", _BlankLoaders([_BlankLoader(learn.dls.train)])),
        assigned(learn, "processes", None),
        learn.removed_cbs(others),
        learn.added_cbs(rehearsal),
    ):
        fit(*args, **kwargs)
    return _moving(rehearsal.columns)


def _moving(columns: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for name in {name: None for column in columns for name in column}:
        curves = [column[name] for column in columns if name in column]
        if name != "lr" and all(len(set(curve)) == 1 for curve in curves):
            continue
        alike = all(curve == curves[0] for curve in curves)
        for i, curve in enumerate(curves[:1] if alike else curves):
            found[name if alike else f"{name} (group {i})"] = curve
    return found


@scoped
def _put_back(learn: TrainingLoop) -> Iterator[None]:
    """Hyper-parameters, what is frozen, gradients and the loop's state are as before afterwards."""
    opt = learn.opt
    hypers = [dict(view) for view in opt.hypers] if opt is not None else []
    frozen = getattr(opt, "frozen_idx", 0)
    params = [(p, p.requires_grad, p.grad) for p in learn.model.parameters()]
    fields = {name: getattr(learn, name) for name in _FIELDS}
    try:
        yield
    finally:
        learn.opt = opt
        for view, before in zip(opt.hypers if opt is not None else [], hypers, strict=True):
            for name, value in before.items():
                view[name] = value
        if opt is not None:
            opt.frozen_idx = frozen
        for p, requires_grad, grad in params:
            p.requires_grad_(requires_grad)
            p.grad = grad
        for name, value in fields.items():
            setattr(learn, name, value)


_FIELDS = (
    "dl xb yb pred _loss _loss_grad training n_epoch n_iter epoch iter updates planned_updates"
).split()
