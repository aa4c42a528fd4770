"""When a process of a fit fails: the others leave at once, or when they have waited too long, and
say which one it was and why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count

from treadle.distributed.heartbeat import Board, Watch
from treadle.errors import RankError, TreadleError, printable
from treadle.interrupts import scoped
from treadle.loop.memory import OutOfMemoryError
from treadle.loop.training import TrainingLoop
from treadle.world import World, is_broken

_numbers = count()
_watches: list[Watch] = []  # of the fit under way


@scoped
def faults_told(loop: TrainingLoop) -> Iterator[None]:
    """With the processes of a fit or a validation watching one another.

    Raises:
        RankError: where this process waited for another in vain: names it and the cause. One that
            fails by itself raises its own error, and the others are told.
    """
    world = loop.parallel.world
    if world.size == 1 or _watches:
        yield
        return
    watch = Watch(world, _board(world), _keeps_store(world), lambda: _place(loop))
    _watches.append(watch)
    try:
        yield
    except BaseException as error:
        told = _told(watch, error)
        if told is None:
            raise
        raise told from error
    else:
        watch.done()
    finally:
        _watches.clear()


def _told(watch: Watch, error: BaseException) -> RankError | None:
    """What to raise in the place of `error`, if that is another's fault."""
    if is_broken(error) or (watch.cause and isinstance(error, RankError)):
        cause = watch.explain()
    else:
        text = printable(str(error).strip().partition("\n")[0])[:300]
        what = f"{type(error).__name__}{': ' if text else ''}{text}"
        deliberate = isinstance(error, (TreadleError, SystemExit))
        watch.raised(
            f"rank {watch.world.rank} raised {what}",
            deliberate and not isinstance(error, OutOfMemoryError),
        )
        cause = watch.cause
        if not (watch.interrupted and isinstance(error, KeyboardInterrupt)):
            return None
    return RankError(
        f"{cause}. All processes leave; when they are started again, learn.resume() goes on from "
        "the newest checkpoint."
    )


def _board(world: World) -> Board:
    """A place of this fit's own."""
    return Board(world.store, f"treadle/{world.processes[0].pid}/{next(_numbers)}", world)


def _keeps_store(world: World) -> bool:
    return world.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _place(loop: TrainingLoop) -> str:
    if loop.training:
        return f"update {loop.updates} (epoch {loop.epoch}, batch {loop.iter})"
    return f"the validation of epoch {loop.epoch}, batch {loop.iter}"
