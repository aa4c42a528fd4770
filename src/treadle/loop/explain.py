"""The loop and its listeners in words: the outline, and who does what at an event."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from treadle.errors import CallbackError
from treadle.loop.events import INNER_EVENTS, Callback, event, nearest_event
from treadle.loop.order import sort_callbacks, wish
from treadle.loop.reading import Reading

OUTLINE = """
fit
    before_fit
    for each epoch
        before_epoch
        train
            before_train
            for each batch
                before_batch
                pred = model(*xb)
                after_pred
                loss = loss_func(pred, *yb)
                after_loss
                before_backward
                loss_grad.backward()
                after_cancel_backward
                after_backward
                unless gradients are gathered for a later step
                    before_step
                    opt.step()
                    after_cancel_step
                    after_step
                    opt.zero_grad()
                after_cancel_batch
                after_batch
            after_cancel_train
            after_train
        validate, the same without backward and step
            before_validate
            after_cancel_validate
            after_validate
        after_cancel_epoch
        after_epoch
    after_cancel_fit
    after_fit
"""


def outline(listeners: Callable[[str], Sequence[Callback]]) -> str:
    """The loop with those who listen; events that nobody hears are left out."""
    lines = []
    for line in OUTLINE.strip("\n").splitlines():
        name = line.strip()
        if name not in event.__members__:
            lines.append(line)
        elif heard := listeners(name):
            lines.append(f"{line:<40}{list(heard)}")
    return "\n".join(lines)


def explain_event(name: str, cbs: Sequence[Callback]) -> str:
    """Who of `cbs` hears the event `name`, why in that order, and what each changes there.

    Raises:
        CallbackError: if there is no such event.
    """
    if name not in event.__members__:
        raise CallbackError(f"there is no event {name!r}; {nearest_event(name)}")
    ordered = sort_callbacks(cbs)
    heard = [cb for cb in ordered if cb.hears(name)]
    if not heard:
        return f"Nobody hears {name}."
    lines = [f"{name} is heard by, in this order:"]
    for i, cb in enumerate(heard, 1):
        lines += [f"{i}. {cb}: {_first_sentence(cb)}", *_details(cb, name, cbs)]
    return "\n".join(lines)


def _details(cb: Callback, name: str, cbs: Sequence[Callback]) -> Iterator[str]:
    wishes = [wish(cb, other) for other in cbs] + [wish(other, cb) for other in cbs]
    yield f"   order {'; '.join([f'{cb.order:g}', *filter(None, wishes)])}"
    yield f"   {_effects(cb, name)}"
    switches = ("run_train", "run_valid") if name in INNER_EVENTS else ()
    off = [switch for switch in ("run", *switches) if not getattr(cb, switch)]
    if off:
        yield f"   not while {' and '.join(off)} {'is' if len(off) == 1 else 'are'} False"


def _first_sentence(cb: Callback) -> str:
    doc = type(cb).__doc__ if type(cb) is not Callback else "made of a function."
    first = " ".join((doc or "says nothing of itself.").split("\n\n")[0].split())
    return first.partition(". ")[0].rstrip(".:") + "."


def _effects(cb: Callback, name: str) -> str:
    reading = Reading(type(cb))
    try:
        reading.read(getattr(cb, name))
    except (OSError, TypeError, SyntaxError):
        return "what it changes is not known: its source cannot be read"
    parts = [f"changes {', '.join(sorted(reading.changed))}"] if reading.changed else []
    parts += [f"may raise {error}" for error in sorted(reading.raised)]
    return "; ".join(parts) or "changes nothing of the learner's that its source shows"
