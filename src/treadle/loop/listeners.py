"""Who listens to the loop: callbacks by event, by name, in order, for long or for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any, Self

from treadle.errors import CallbackError
from treadle.interrupts import scoped, undivided
from treadle.loop.events import CANCELS, INNER_EVENTS, Callback, check_event_name, event
from treadle.loop.explain import explain_event, outline
from treadle.loop.order import sort_callbacks
from treadle.loop.parallel import Parallel

Callbacks = Callback | type[Callback] | Sequence[Callback | type[Callback]] | None


class Listeners:
    """Holds callbacks and calls those who hear an event. `cbs` are all of them, as added."""

    training: bool
    parallel: Parallel
    _listeners: dict[str, list[tuple[Callback, Callable[[], Any], bool]]]

    def __init__(self) -> None:
        self.cbs: list[Callback] = []
        self.agreed: Set[str] = frozenset()  # events at which processes ask who cancels
        self._sort_listeners()

    def __call__(self, name: str, agree: bool = True) -> None:
        """Fire the event `name`: every callback that hears it, in order. Of several processes all
        do what one of them cancels; without `agree` they are not asked."""
        if agree and name in self.agreed:
            self.parallel.agree(self, name)
            return
        for cb, heard, inner in self._listeners[name]:
            if cb.run and (not inner or (cb.run_train if self.training else cb.run_valid)):
                try:
                    heard()
                except CANCELS:
                    raise
                except BaseException as error:
                    _tell_where(error, cb, name)
                    raise

    def is_heard(self, *names: str) -> bool:
        """Whether anybody hears one of these events."""
        return any(self._listeners[name] for name in names)

    @scoped
    def silence(self) -> Iterator[None]:
        """With nobody to hear an event. What one process hears and cancels, this one does too."""
        heard = self._listeners
        try:
            self._listeners = {name: [] for name in heard}
            yield
        finally:
            self._listeners = heard

    @undivided
    def add_cb(self, cb: Callback | type[Callback]) -> Self:
        """Add a callback, or the class of one. It takes the place of an earlier one of its name,
        so running a notebook cell again does not make it run twice. If its `after_create` raises,
        all is as before."""
        made = cb() if isinstance(cb, type) else cb
        if not isinstance(made, Callback):
            raise CallbackError(f"add_cb got {cb!r}; expected a Callback or a subclass of it.")
        for name, value in vars(made).items():
            if callable(value):
                check_event_name(str(made), name)
        before, earlier = list(self.cbs), self._of_name(made)
        if earlier is not None:
            self.remove_cb(earlier)
        made.learn = self
        self._give_name(made)
        self.cbs.append(made)
        self._sort_listeners()
        if made.run and made.hears(event.after_create):
            try:
                made.after_create()
            except BaseException as error:
                self._put_callbacks_back(before)
                _tell_where(error, made, event.after_create)
                raise
        return self

    def add_cbs(self, cbs: Callbacks) -> Self:
        """Add several callbacks."""
        made = [cb() if isinstance(cb, type) else cb for cb in as_list(cbs)]
        names = [cb.name for cb in made if type(cb) is not Callback]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise CallbackError(
                f"two callbacks named {', '.join(sorted(twice))} were given at once and only one "
                "can be learn.NAME; give one another `name` by a subclass."
            )
        for cb in made:
            self.add_cb(cb)
        return self

    @undivided
    def remove_cb(self, cb: Callback | type[Callback]) -> Self:
        """Remove a callback, or all of a class."""
        gone = [o for o in self.cbs if (isinstance(o, cb) if isinstance(cb, type) else o is cb)]
        for o in gone:
            self.cbs.remove(o)
            if self.__dict__.get(o.name) is o:
                delattr(self, o.name)
        self._sort_listeners()
        return self

    def remove_cbs(self, cbs: Callbacks) -> Self:
        """Remove several callbacks."""
        for cb in as_list(cbs):
            self.remove_cb(cb)
        return self

    @scoped
    def added_cbs(self, cbs: Callbacks) -> Iterator[Self]:
        """With these callbacks, for as long as the `with` block lasts."""
        with self._callbacks_put_back():
            yield self.add_cbs(cbs)

    @scoped
    def removed_cbs(self, cbs: Callbacks) -> Iterator[Self]:
        """Without these callbacks, for as long as the `with` block lasts."""
        with self._callbacks_put_back():
            yield self.remove_cbs(cbs)

    @scoped
    def _callbacks_put_back(self) -> Iterator[None]:
        before = list(self.cbs)
        try:
            yield
        finally:
            self._put_callbacks_back(before)

    def _put_callbacks_back(self, before: list[Callback]) -> None:
        for cb in [cb for cb in self.cbs if cb not in before]:
            self.remove_cb(cb)
        self.cbs = before
        for cb in before:
            self._give_name(cb)
        self._sort_listeners()

    def _give_name(self, cb: Callback) -> None:
        """Make it `learn.NAME`, unless that is something else: a `Freeze` is not to hide
        `learn.freeze`."""
        taken = hasattr(type(self), cb.name) or not isinstance(
            self.__dict__.get(cb.name, cb), Callback
        )
        if not taken:
            setattr(self, cb.name, cb)

    def _of_name(self, cb: Callback) -> Callback | None:
        """The callback whose place `cb` takes. Those made of bare functions have no name of their
        own and stand side by side."""
        if type(cb) is Callback:
            return cb if cb in self.cbs else None
        return next((o for o in self.cbs if o.name == cb.name), None)

    def ordered_cbs(self, name: str) -> list[Callback]:
        """Those who hear the event `name`, in the order in which they run."""
        return [cb for cb, *_ in self._listeners[name]]

    def show_training_loop(self) -> None:
        """Print the loop, and at each event who hears it, in order."""
        if self.parallel.world.is_main:
            print(outline(self.ordered_cbs))

    def explain(self, name: str) -> None:
        """Print who hears the event `name`, why in that order, and what each changes there.

        Raises:
            CallbackError: if there is no such event, with the nearest.
        """
        told = explain_event(name, self.cbs)
        if self.parallel.world.is_main:
            print(told)

    def _sort_listeners(self) -> None:
        is_main = self.parallel.world.is_main
        ordered = [cb for cb in sort_callbacks(self.cbs) if is_main or not cb.on_main]
        # An event that nobody hears costs one look into this table.
        self._listeners = {
            name: [(cb, getattr(cb, name), inner) for cb in ordered if cb.hears(name)]
            for name, inner in ((name, name in INNER_EVENTS) for name in event.__members__)
        }


def _tell_where(error: BaseException, cb: Callback, name: str) -> None:
    error.add_note(f"This came from the callback {cb} at the event {name}.")


def as_list(cbs: Callbacks) -> list[Callback | type[Callback]]:
    """None, one or several callbacks as a list."""
    if cbs is None:
        return []
    return list(cbs) if isinstance(cbs, Iterable) else [cbs]
