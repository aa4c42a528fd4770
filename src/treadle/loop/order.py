"""In which order callbacks run: by `order`, and by what they ask of one another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from treadle.errors import CallbackError, nearest
from treadle.loop.events import Callback, CallbackRef, all_callbacks, default_name


def sort_callbacks(cbs: Iterable[Callback]) -> list[Callback]:
    """By `order`, but after all that must run before: `run_after` of one, `run_before` of others.

    Who has the wish moves for it: forward to run before another, back to run after it. Equal
    callbacks keep the order in which they were added. A wish about a callback that is not there is
    none.

    Raises:
        CallbackError: if the wishes contradict one another, with those that do; if one names
            what is no callback.
    """
    cbs = list(cbs)
    for cb in cbs:
        _check_wishes(cb, cbs)
    places = _places(cbs)
    waiting = sorted(cbs, key=lambda cb: places[id(cb)])
    done: list[Callback] = []
    while waiting:
        free = next((cb for cb in waiting if not any(wish(o, cb) for o in waiting)), None)
        if free is None:
            raise _contradiction(waiting)
        waiting.remove(free)
        done.append(free)
    return done


def wish(first: Callback, then: Callback) -> str:
    """In words, what asks that `first` runs before `then`; empty if nothing does."""
    if first is then:
        return ""
    if _refers(first.run_before, then):
        return f"{first} asks to run before {then}"
    return f"{then} asks to run after {first}" if _refers(then.run_after, first) else ""


def _places(cbs: Sequence[Callback]) -> dict[int, float]:
    """The `order` of each callback, or that of the least of those it asks to run before: else
    these would wait for it, and fall behind others that count on their `order`."""
    places = {id(cb): cb.order for cb in cbs}
    wishes = [(a, b) for a in cbs for b in cbs if a is not b and _refers(a.run_before, b)]
    for _ in wishes:  # a chain of wishes is at most this long
        for a, b in wishes:
            places[id(a)] = min(places[id(a)], places[id(b)])
    return places


def _contradiction(waiting: Sequence[Callback]) -> CallbackError:
    """Each of those who wait does so for another: whoever follows that comes round in a circle."""
    path = [waiting[0]]
    while path[-1] not in path[:-1]:
        path.append(next(cb for cb in waiting if wish(cb, path[-1])))
    circle = path[path.index(path[-1]) :]
    names = ", ".join(map(str, circle[1:]))
    wishes = ", and ".join(wish(circle[i], circle[i - 1]) for i in range(1, len(circle)))
    return CallbackError(
        f"the callbacks {names} cannot be put in order, for their run_before and run_after "
        f"contradict one another: {wishes}. Take one of these wishes back."
    )


def _refers(refs: CallbackRef | Sequence[CallbackRef], cb: Callback) -> bool:
    return any(
        ref in _names(cb) if isinstance(ref, str) else isinstance(cb, ref) for ref in _several(refs)
    )


def _names(cb: Callback) -> set[str]:
    return {cb.name, *(cls.__name__ for cls in type(cb).__mro__)}


def _several(refs: CallbackRef | Sequence[CallbackRef]) -> Sequence[CallbackRef]:
    return [refs] if isinstance(refs, (str, type)) else refs


def _check_wishes(cb: Callback, there: Sequence[Callback]) -> None:
    for field in ("run_before", "run_after"):
        refs = getattr(cb, field)
        for ref in _several(refs) if isinstance(refs, (str, type, Sequence)) else [refs]:
            if isinstance(ref, str):
                _check_name(f"{cb}.{field}", ref, there)
            elif not (isinstance(ref, type) and issubclass(ref, Callback)):
                raise CallbackError(
                    f"{cb}.{field} names {ref!r}; give a class of callbacks, the name of one, or a "
                    "list of these."
                )


def _check_name(where: str, name: str, there: Sequence[Callback]) -> None:
    if any(name in _names(cb) for cb in there):
        return
    known = {word for cls in all_callbacks() for word in (cls.__name__, default_name(cls))}
    if name not in known:
        raise CallbackError(f"{where} names {name!r}, which is no callback; {_near(name, known)}")


def _near(name: str, known: set[str]) -> str:
    near = nearest(name, known)
    return near if near.startswith("did") else "import the module that has it, or take it away."
