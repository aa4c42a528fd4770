"""Going on with a fit that was interrupted, from its newest checkpoint."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

from treadle.callbacks.checkpoint import CheckpointCallback, Every
from treadle.distributed.launch import Processes
from treadle.errors import DataError
from treadle.interrupts import undivided
from treadle.loop.events import Callback, CancelTrainException
from treadle.loop.listeners import Callbacks, as_list
from treadle.loop.snapshot import can_seek, check_fits, put_back
from treadle.loop.state import all_generators, set_all_generators
from treadle.loop.training import TrainingLoop, assigned
from treadle.run.checkpoint import read_newest
from treadle.run.packed import unpack
from treadle.shards import sharded_alike

Verb = TypeVar("Verb", bound=Callable[..., None])

_VERBS: set[str] = set()  # that a checkpoint may name
_NOT_KEPT = ("cbs", "checkpoint")  # made anew by the code that resumes


@dataclass
class Call:
    """A verb that trains, as it was called. `fits` are those that it has begun so far."""

    verb: str
    kwargs: dict[str, Any]
    fits: int = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs to call it again, and in which of its fits it was."""
        return {"verb": self.verb, "kwargs": self.kwargs, "fit": self.fits}


def resumable(verb: Verb) -> Verb:
    """A method of the learner that trains, in one fit or in several. A checkpoint names the
    outermost one that was called, and `resume` calls it again with the same arguments."""
    _VERBS.add(verb.__name__)
    signature = inspect.signature(verb)

    @undivided
    @functools.wraps(verb)
    def called(self: Resuming, *args: Any, **kwargs: Any) -> None:
        if self.call is not None:
            verb(self, *args, **kwargs)
            return
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        given.pop("self")
        given |= given.pop("kwargs", {})
        if self.processes is not None:
            fit = functools.partial(called, self, *args, **kwargs)
            self.processes.train(self, fit, as_list(given.get("cbs")))
            return
        for name in _NOT_KEPT:
            given.pop(name, None)
        with assigned(self, "call", Call(verb.__name__, given)):
            verb(self, *args, **kwargs)

    return cast(Verb, called)


class Resuming(TrainingLoop):
    """The part of a `Learner` that goes on where it was interrupted."""

    path: Path
    call: Call | None = None
    processes: Processes | None = None  # to be started for each verb that trains
    _resumption: Resumption | None = None

    @undivided
    def resume(self, folder: str | os.PathLike[str] | None = None, cbs: Callbacks = None) -> None:
        """Go on with the fit that was interrupted, to its end, from the newest whole checkpoint in
        `folder` (`path/"checkpoints"` if None).

        Make the learner by the same code as then, and give `cbs` what was given to that fit; number
        of workers, cache and device may be others, as may the number of processes and `parallel`,
        if the batches of all together are as large (`global_bs`). The verb that trained is called
        again with its arguments: fits before the one that was interrupted are passed over, as are
        all batches that were done. On the same device, with as many processes, it ends with the
        same bits as without the interruption.

        All processes take the newest checkpoint that is whole for each of them.

        Raises:
            DataError: if there is no checkpoint, or it is not one of a fit.
            UsageError: if the learner is not the one of the checkpoint, with what differs.
        """
        where = Path(folder) if folder is not None else self.path / "checkpoints"
        self.parallel.spread(self)  # so that each process reads no more than it will have
        like, processes = sharded_alike(self.model.named_parameters()), self.parallel.world
        read = read_newest(where, like, processes)
        if read is None:
            raise DataError(f"there is no checkpoint in {where}; give the folder that has them.")
        state = unpack(read.tensors, read.values.get("state", {}), self.device or "cpu")
        if processes.rank >= read.manifest.processes:  # it draws numbers as no other process does
            for name in {"torch", "cuda"} & state["fit"]["generators"].keys():
                del state["fit"]["generators"][name]
        call = _checked_call(state.get("call", {}), read.path)
        if not any(isinstance(cb, CheckpointCallback) for cb in (*self.cbs, *as_list(cbs))):
            every = call["every"] and Every(**call["every"])
            again = CheckpointCallback(every, where, **call["writing"])
            cbs = [*as_list(cbs), again]
        with assigned(self, "_resumption", Resumption(state, call["fit"])):
            getattr(self, call["verb"])(**call["kwargs"], cbs=cbs)

    def _passed_over(self) -> bool:
        """Whether the fit that begins was over when the checkpoint was taken."""
        if self.call is not None:
            self.call.fits += 1
        resumption = self._resumption
        return resumption is not None and self.call is not None and self.call.fits < resumption.fit

    def _resumptions(self) -> list[Callback]:
        """What puts the state back in the fit that begins, if it is the one that is resumed."""
        resumption = self._resumption
        self._resumption = None
        return [] if resumption is None else [resumption]


class Resumption(Callback):
    """Puts the state of a checkpoint into a fit that begins, where its events have reset it.

    It does so when the fit has begun; and again before the first batch where an epoch is resumed
    in its middle, of training or validation, of which the events up to there are heard once more.
    """

    order = math.inf
    run_after = CheckpointCallback

    def __init__(self, state: Mapping[str, Any], fit: int) -> None:
        self.state, self.fit = state, fit

    def before_fit(self) -> None:
        check_fits(self.learn, self.state)
        put_back(self.learn, self.state)
        place = self.state["fit"]["place"]
        self.within = place["batches"] is not None
        self.scope.callback(setattr, self.learn, "first_epoch", 0)
        self.scope.callback(setattr, self.learn, "first_iter", 0)
        self.learn.first_epoch = place["epoch"]
        if not self.within:
            self.state = {}  # which may be as large as the model

    def before_train(self) -> None:
        if not self.within:
            return
        fit = self.state["fit"]
        if fit["place"]["batches"] == "all":
            raise CancelTrainException
        self.within = False
        put_back(self.learn, self.state)
        self.learn.first_iter = fit["place"]["batches"]
        if not can_seek(self.dls.train):
            begun_with = fit["callbacks"]["checkpoint"]["begun_with"]
            self.learn.dl = _Wound(self.learn, self.dl, begun_with)
        self.state = {}

    def before_validate(self) -> None:
        if not self.within:
            return
        self.within = False
        put_back(self.learn, self.state)
        self.state = {}
        for cb in self.learn.cbs:
            if isinstance(cb, CheckpointCallback):
                cb.before_validate()  # what it noted just now was the state before


class _Wound:
    """A loader in the epoch that is resumed: the batches that were done are drawn and dropped."""

    def __init__(self, learn: TrainingLoop, dl: Any, begun_with: Mapping[str, Any]) -> None:
        self._learn, self._dl, self._begun_with = learn, dl, begun_with
        self._done = learn.first_iter

    def __len__(self) -> int:
        return len(self._dl)

    def __iter__(self) -> Iterator[Any]:
        now = all_generators(self._learn)
        set_all_generators(self._learn, self._begun_with)
        batches = iter(self._dl)
        for _ in islice(batches, self._done):
            pass
        set_all_generators(self._learn, now)
        yield from batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dl, name)


def _checked_call(call: Mapping[str, Any], newest: Path) -> Mapping[str, Any]:
    if call.get("verb") not in _VERBS:
        raise DataError(
            f"{newest} does not say which fit it is of (verb={call.get('verb')!r}); known are "
            f"{', '.join(sorted(_VERBS))}."
        )
    return call
