"""Events, callbacks, and the exceptions that skip.

The loop fires an `event` at each of 24 named points; a `Callback` hears an event by having a
method of that name. Which event falls where is written out in `treadle.loop.training`.
"""

from __future__ import annotations

import difflib
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum, auto
from operator import attrgetter
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


CANCELS = (
    CancelStepException,
    CancelBackwardException,
    CancelBatchException,
    CancelTrainException,
    CancelValidException,
    CancelEpochException,
    CancelFitException,
)

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
        on_main: whether, of several processes, it is heard in the main one alone: it prints, or
            writes a file.
        state_names: the attributes that change while training and that a resumed fit is to go on
            with: tensors, numbers, text, and lists, tuples or dicts of these. Those of the parent
            classes need not be named again. For more than that, write `state_dict` and
            `load_state_dict`.

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
    on_main: bool = False
    state_names: ClassVar[Sequence[str]] = ()
    learn: Any
    _heard: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, **functions: Callable[[Any], object]) -> None:
        for name, function in functions.items():
            if name not in event.__members__:
                raise CallbackError(f"Callback({name}=...): no such event; {nearest_event(name)}")
            setattr(self, name, MethodType(function, self))

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        parents = [base for base in cls.__mro__[1:] if issubclass(base, Callback)]
        mixins = [base for base in cls.__mro__[1:] if not any(issubclass(p, base) for p in parents)]
        for base in (cls, *mixins):
            _check_hides_nothing(base)
            for name, method in list(vars(base).items()):
                if not inspect.isroutine(method):
                    continue
                if name in _RETIRED:
                    _adopt_retired_name(cls, name, method)
                check_event_name(base.__name__, name)
        cls._heard = frozenset(name for name in event.__members__ if _has_method(cls, name))

    @property
    def name(self) -> str:
        """The attribute of the learner under which this callback is found.

        `RNNCallback` is `learn.rnn`, `ModelResetter` is `learn.model_resetter`.
        """
        return default_name(type(self))

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs: the attributes in `state_names`, not copied."""
        return {name: vars(self)[name] for name in self._all_state_names() if name in vars(self)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` gave. Called in the order in which callbacks run, when all
        have heard `before_fit`, and once more after `before_train` where an epoch is resumed in
        its middle; the model, the optimizer and the loop are as they were by then."""
        for name in self._all_state_names():
            if name in state:
                setattr(self, name, state[name])

    def _all_state_names(self) -> Iterator[str]:
        for cls in type(self).__mro__:
            yield from vars(cls).get("state_names", ())

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
                f"{_who_would_have(name)}"
            ) from None

    def __repr__(self) -> str:
        return type(self).__name__


def _learners(name: str) -> property:
    """What a callback reads as its own and is the learner's."""

    def refuse(cb: Callback, value: object) -> None:
        raise CallbackError(
            f"{cb} assigns self.{name}, which would only hide the learner's {name} from this "
            f"callback and change nothing in training; write self.learn.{name} = ... instead."
        )

    return property(attrgetter(f"learn.{name}"), refuse)


# What callbacks read most, once or more a batch, they find without the detour of `__getattr__`.
for _name in LOOP_STATE:
    setattr(Callback, _name, _learners(_name))


def all_callbacks(cls: type[Callback] = Callback) -> Iterator[type[Callback]]:
    """All classes of callbacks that have been made."""
    for subclass in cls.__subclasses__():
        yield subclass
        yield from all_callbacks(subclass)


def default_name(cls: type[Callback]) -> str:
    """The name on the learner of a callback of this class, if it has no say in it."""
    return snake_case(cls.__name__.removesuffix("Callback")) or "callback"


def snake_case(name: str) -> str:
    """CamelCase to snake_case.

    >>> snake_case("RNNRegularizer")
    'rnn_regularizer'
    """
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", words).lower()


def check_event_name(owner: str, name: str) -> None:
    """Raise CallbackError for a method that looks like an event but is none."""
    if name not in event.__members__ and name not in _RETIRED and _looks_like_event(name):
        raise CallbackError(
            f"{owner}.{name} looks like an event but is none, so it would never be called; "
            f"{nearest_event(name)} (A helper method may start with an underscore.)"
        )


def nearest_event(name: str) -> str:
    """A clause with the event nearest to `name`, or with all of them."""
    close = difflib.get_close_matches(name, event.__members__, n=1, cutoff=0.4)
    return f"did you mean {close[0]}?" if close else f"events are {', '.join(event.__members__)}."


def _looks_like_event(name: str) -> bool:
    if name.startswith("_"):
        return False
    if name.startswith(("before_", "after_", "begin_")):
        return True
    return bool(difflib.get_close_matches(name, event.__members__, n=1, cutoff=0.8))


def _has_method(cls: type[Callback], name: str) -> bool:
    """Whether the class hears `name`; None in the place of a parent's method takes it away."""
    method = getattr(cls, name, None)
    if method is not None and not callable(method):
        raise CallbackError(f"{cls.__name__}.{name} is an event, and {method!r} is no method.")
    return method is not None


def _check_hides_nothing(cls: type) -> None:
    hidden = sorted(LOOP_STATE & vars(cls).keys())
    if hidden:
        raise CallbackError(
            f"{cls.__name__} defines {', '.join(hidden)}, which would hide what the learner calls "
            "so; give it another name."
        )


def _who_would_have(name: str) -> str:
    """A clause with the callback that is found under `name` where it is there, or nothing."""
    cls = next((cls for cls in all_callbacks() if default_name(cls) == name), None)
    return f"; that would be a {cls.__name__}, which was not added" if cls else ""


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
