"""Events, callbacks, and the exceptions that skip.

The loop fires an `event` at each of 24 named points; a `Callback` hears an event by having a
method of that name. Which event falls where is written out in `treadle.loop.training`.
"""

from __future__ import annotations

import difflib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum, auto
from types import MethodType
from typing import Any, ClassVar

from treadle.errors import CallbackError


class event(StrEnum):
    """The 24 points of training, in the order in which a run first passes them.

    >>> event.before_fit
    <event.before_fit: 'before_fit'>
    """

    after_create = auto()
    before_fit = auto()
    before_epoch = auto()
    before_train = auto()
    before_batch = auto()
    after_pred = auto()
    after_loss = auto()
    before_backward = auto()
    after_cancel_backward = auto()
    after_backward = auto()
    before_step = auto()
    after_cancel_step = auto()
    after_step = auto()
    after_cancel_batch = auto()
    after_batch = auto()
    after_cancel_train = auto()
    after_train = auto()
    before_validate = auto()
    after_cancel_validate = auto()
    after_validate = auto()
    after_cancel_epoch = auto()
    after_epoch = auto()
    after_cancel_fit = auto()
    after_fit = auto()


# What happens within a batch; `run_train` and `run_valid` apply to these alone.
INNER_EVENTS = frozenset(
    {
        event.before_batch,
        event.after_pred,
        event.after_loss,
        event.before_backward,
        event.after_cancel_backward,
        event.after_backward,
        event.before_step,
        event.after_cancel_step,
        event.after_step,
        event.after_cancel_batch,
        event.after_batch,
    }
)

# The spelling of the book and of early fastai2.
_RETIRED = {f"begin_{x}": f"before_{x}" for x in "fit epoch train batch validate".split()}

# What the loop owns. A callback that assigns one of these on itself would hide it, and train on.
LOOP_STATE = frozenset(
    "model dls loss_func opt opt_func cbs dl x xb y yb pred loss_grad loss "
    "n_epoch n_iter epoch iter training".split()
)


class CancelStepException(Exception):
    """Skip the optimizer's step; go to `after_cancel_step`."""


class CancelBackwardException(Exception):
    """Skip the rest of the backward pass; go to `after_cancel_backward`."""


class CancelBatchException(Exception):
    """Skip the rest of this batch; go to `after_cancel_batch`."""


class CancelTrainException(Exception):
    """Skip the rest of this epoch's training; go to `after_cancel_train`."""


class CancelValidException(Exception):
    """Skip the rest of this validation; go to `after_cancel_validate`."""


class CancelEpochException(Exception):
    """Skip the rest of this epoch; go to `after_cancel_epoch`."""


class CancelFitException(Exception):
    """End this fit; go to `after_cancel_fit`."""


# How a callback names others: a class, a name, or several of these.
CallbackRef = type["Callback"] | str


class Callback:
    """Something that hears events of the training loop and may change all that it finds there.

    Write a method named like an event. Reading an attribute that the callback lacks reads the
    learner's (`self.loss`, `self.epoch`, `self.xb`); to change one of the loop's own, assign it on
    the learner (`self.learn.loss = ...`). A callback is found on the learner under its `name`.

    Functions serve too: `Callback(after_loss=f)` calls `f(callback)` after each loss.

    Attributes:
        order: smaller runs first.
        run_before, run_after: callback classes or names to run before or after, whatever `order`.
        run, run_train, run_valid: switches; the last two for events within batches.
        reports: whether it only tells what happens, or judges it; `lr_find` and `get_preds` go
            without those.

    Raises:
        CallbackError: when a class is made with a method that looks like an event but is none, and
            when a class or a callback has or gets for its own what belongs to the learner.

    >>> class PrintEpoch(Callback):
    ...     def after_epoch(self):
    ...         print(self.epoch, self.recorder.losses[-1])
    """

    order: float = 0
    run_before: CallbackRef | Sequence[CallbackRef] = ()
    run_after: CallbackRef | Sequence[CallbackRef] = ()
    run: bool = True
    run_train: bool = True
    run_valid: bool = True
    reports: bool = False
    learn: Any
    _heard: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, **functions: Callable[[Any], object]) -> None:
        for name, function in functions.items():
            if name not in event.__members__:
                raise CallbackError(f"Callback({name}=...): no such event; {_nearest(name)}")
            setattr(self, name, MethodType(function, self))

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        hidden = sorted(LOOP_STATE & vars(cls).keys())
        if hidden:
            raise CallbackError(
                f"{cls.__name__} defines {', '.join(hidden)}, which would hide what the learner "
                "calls so; give it another name."
            )
        for name, method in list(vars(cls).items()):
            if not inspect.isfunction(method) or name in event.__members__:
                continue
            if name in _RETIRED:
                _adopt_retired_name(cls, name, method)
            elif _looks_like_event(name):
                raise CallbackError(
                    f"{cls.__name__}.{name} looks like an event but is none, so it would never be "
                    f"called; {_nearest(name)} (A helper method may start with an underscore.)"
                )
        cls._heard = frozenset(name for name in event.__members__ if hasattr(cls, name))

    @property
    def name(self) -> str:
        """The attribute of the learner under which this callback is found.

        `RNNCallback` is `learn.rnn`, `ModelResetter` is `learn.model_resetter`.
        """
        return snake_case(type(self).__name__.removesuffix("Callback")) or "callback"

    def hears(self, name: str) -> bool:
        """Whether this callback has something to do at the event `name`."""
        return name in self._heard or name in self.__dict__

    def __getattr__(self, name: str) -> Any:
        # Called only for what neither the instance nor its class has.
        learn = self.__dict__.get("learn")
        if learn is None or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        try:
            return getattr(learn, name)
        except AttributeError:
            raise AttributeError(
                f"neither {type(self).__name__} nor its learner has an attribute {name!r}"
            ) from None

    def __setattr__(self, name: str, value: object) -> None:
        if name in LOOP_STATE:
            raise CallbackError(
                f"{type(self).__name__} assigns self.{name}, which would only hide the learner's "
                f"{name} from this callback and change nothing in training; "
                f"write self.learn.{name} = ... instead."
            )
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return type(self).__name__


def snake_case(name: str) -> str:
    """CamelCase to snake_case.

    >>> snake_case("RNNRegularizer")
    'rnn_regularizer'
    """
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", words).lower()


def _looks_like_event(name: str) -> bool:
    if name.startswith("_"):
        return False
    if name.startswith(("before_", "after_", "begin_")):
        return True
    return bool(difflib.get_close_matches(name, event.__members__, n=1, cutoff=0.8))


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, event.__members__, n=1, cutoff=0.4)
    return f"did you mean {close[0]}?" if close else f"events are {', '.join(event.__members__)}."


def _adopt_retired_name(cls: type[Callback], old: str, method: Callable[..., object]) -> None:
    new = _RETIRED[old]
    if new in vars(cls):
        raise CallbackError(f"{cls.__name__} has both {old} and {new}; keep {new}, today's name.")
    warnings.warn(
        f"{cls.__name__}.{old}: the event is called {new} today; rename the method.",
        DeprecationWarning,
        stacklevel=3,
    )
    setattr(cls, new, method)


def sort_callbacks(cbs: Iterable[Callback]) -> list[Callback]:
    """By `order`, but after all that must run before: `run_after` of one, `run_before` of others.

    Who has the wish moves for it: forward to run before another, back to run after it. Equal
    callbacks keep the order in which they were added.

    Raises:
        CallbackError: if the wishes contradict one another, with those that do.
    """
    cbs = list(cbs)
    places = _places(cbs)
    waiting = sorted(cbs, key=lambda cb: places[id(cb)])
    done: list[Callback] = []
    while waiting:
        free = next((cb for cb in waiting if not any(_precedes(o, cb) for o in waiting)), None)
        if free is None:
            names = ", ".join(str(cb) for cb in waiting)
            raise CallbackError(
                f"the callbacks {names} cannot be put in order: their run_before and run_after "
                "contradict one another; take one of these wishes back."
            )
        waiting.remove(free)
        done.append(free)
    return done


def _places(cbs: Sequence[Callback]) -> dict[int, float]:
    """The `order` of each callback, or that of the least of those it asks to run before: else
    these would wait for it, and fall behind others that count on their `order`."""
    places = {id(cb): cb.order for cb in cbs}
    wishes = [(a, b) for a in cbs for b in cbs if a is not b and _refers(a.run_before, b)]
    for _ in wishes:  # a chain of wishes is at most this long
        for a, b in wishes:
            places[id(a)] = min(places[id(a)], places[id(b)])
    return places


def _precedes(first: Callback, then: Callback) -> bool:
    """Whether one of the two asks that `first` runs before `then`."""
    if first is then:
        return False
    return _refers(first.run_before, then) or _refers(then.run_after, first)


def _refers(refs: CallbackRef | Sequence[CallbackRef], cb: Callback) -> bool:
    several = [refs] if isinstance(refs, (str, type)) else refs
    return any(
        ref in (cb.name, type(cb).__name__) if isinstance(ref, str) else isinstance(cb, ref)
        for ref in several
    )
