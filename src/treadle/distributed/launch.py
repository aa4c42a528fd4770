"""Fits of a notebook or a script of one process, run in several that are started for each.

parent      starts them by torch's elastic launch, forked, so that they have the learner, its
            data and all that was defined in the notebook; waits; takes over the outcome
children    are the processes of a run, as torchrun's are; rank 0 prints; all write the state
            of the fit that ended, as a checkpoint, or the error that ended it
"""

from __future__ import annotations

import base64
import contextvars
import gc
import json
import logging
import multiprocessing as mp
import os
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist

from treadle import errors
from treadle.distributed import as_parallel
from treadle.errors import RankError, TreadleError, UsageError
from treadle.interrupts import interruptible
from treadle.loop.events import Callback
from treadle.loop.parallel import Parallel
from treadle.loop.signals import ENDING, EndRequest, Preempted
from treadle.loop.snapshot import put_back, snapshot
from treadle.loop.training import assigned
from treadle.plots import notebook_shell
from treadle.run.checkpoint import read_newest, write_checkpoint
from treadle.run.packed import pack, unpack
from treadle.world import local_rank, world

_END_S = 30.0  # for a process that is asked to end, which may write a checkpoint first


@dataclass(frozen=True)
class Processes:
    """How many processes are to be started for each fit, and how they share its work."""

    n: int
    parallel: str | Parallel | None

    def train(self, loop: Any, fit: Callable[[], None], cbs: Iterable[Any]) -> None:
        """Run `fit`, which trains the learner `loop` with `cbs` in addition, in all of them.

        Afterwards the learner is as if the fit had been here: weights, optimizer, loaders, random
        numbers, and of callbacks (the learner's and `cbs`) what they keep for a resume. If the fit
        fails or is interrupted, the learner is what it was before.

        Raises:
            UsageError: if this process cannot be forked.
            RankError: if a process failed; one of Treadle's errors is raised as it is.
        """
        _check_can_fork()
        own = [cb for cb in cbs if isinstance(cb, Callback)]
        with TemporaryDirectory(prefix="treadle-") as made:
            folder = Path(made)

            def work() -> None:
                self._join(loop)
                fit()
                with loop.added_cbs(own):
                    tensors, values = pack(snapshot(loop, None))
                write_checkpoint(folder, 0, tensors, {"state": values})

            _Launch(self.n, folder, work).run()
            _take_over(loop, folder, own)

    def _join(self, loop: Any) -> None:
        """In a child: be one of several, from here on."""
        torch.set_num_threads(max(torch.get_num_threads() // self.n, 1))
        if loop.device is not None and loop.device.type == "cuda":
            if torch.cuda._is_in_bad_fork():
                raise UsageError(_CUDA)
            loop.dls.to(torch.device("cuda", local_rank()))
        now = world()
        loop.processes, loop.parallel = None, as_parallel(self.parallel)
        loop.parallel.world = now  # it may have been made when there was one process
        if not now.is_main:
            loop.logger = _silent
        for dl in loop.dls:
            if hasattr(dl, "world"):
                dl.world = now
        if loop.parallel.name == "fsdp" and loop.opt is not None:
            state = snapshot(loop, None)
            loop.create_opt()  # for the parameters as they are when they are spread
            put_back(loop, state)


def processes_for(n: int, parallel: str | Parallel | None) -> Processes | None:
    """What starts `n` processes; None where nothing is to be started: for one, and in a process of
    `n` that torchrun has started.

    Raises:
        UsageError: if `n` is below 1, or torchrun has started another number.
    """
    if n < 1:
        raise UsageError(f"distributed({n}): give the number of processes, 1 or more.")
    there = world().size
    if there > 1 and there != n:
        raise UsageError(
            f"distributed({n}) is called in one of {there} processes; give the same number to both "
            "torchrun and distributed, or leave out one of them."
        )
    return None if n == there or n == 1 else Processes(n, parallel)


_CUDA = (
    "distributed() forks this process, which cannot be done once it has used CUDA; start the "
    "program with torchrun, or train on the CPU from a notebook that is started anew."
)


def _check_can_fork() -> None:
    if "fork" not in mp.get_all_start_methods():
        raise UsageError(
            "distributed() forks this process, which this system cannot do; start the program with "
            "torchrun."
        )
    if torch.cuda.is_initialized():
        raise UsageError(_CUDA)


def _silent(row: Any) -> None:
    """The logger of a process that does not print."""


def _take_over(loop: Any, folder: Path, cbs: list[Callback]) -> None:
    """Make the learner what it is in the processes that have trained it."""
    read = read_newest(folder)
    if read is None:
        raise RankError("the processes ended without an error and without the state of the fit.")
    state = unpack(read.tensors, read.values["state"])
    state["fit"]["generators"].pop("cuda", None)  # which is not in use here, and is to stay so
    if loop.opt is None:
        loop.create_opt()
    with assigned(loop, "logger", _silent), loop.added_cbs(cbs):
        put_back(loop, state)


# Processes


@dataclass
class _Launch:
    """Processes from their start to their end, none of which outlives this one.

    They are forked from a thread that has not computed: one forked from the main thread would wait
    for ever for the threads of OpenMP that were left behind, as soon as it uses more than one.
    """

    n: int
    folder: Path
    work: Callable[[], None]
    error: BaseException | None = None

    def run(self) -> None:
        """Start them and wait.

        Raises:
            TreadleError: what ended one of them.
            Preempted: if that was a signal, or a time limit.
        """
        self.reader, self.writer = os.pipe()  # as long as it is open, this process wants them
        self.shown, self.shows = mp.Pipe(duplex=False)  # what they display in a notebook
        context = contextvars.copy_context()  # by which notebooks know the cell that prints
        thread = Thread(target=context.run, args=(self._elastic_launch,), name="treadle-launch")
        with EndRequest(ENDING) as request:
            thread.start()
            try:
                self._wait(thread, request)
            finally:
                os.close(self.writer)
                thread.join()
                os.close(self.reader)
                self.shown.close()
                self.shows.close()
                gc.collect()  # the store where they met ends here; in a later fork that would hang
        if self.error is not None:
            self._raise_cause(request)

    @interruptible
    def _wait(self, thread: Thread, request: EndRequest) -> None:
        while (there := self.shown.poll(0.1)) or (thread.is_alive() and request.number is None):
            if there:
                notebook_shell().display_pub.publish(**json.loads(self.shown.recv_bytes()))

    def _elastic_launch(self) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.n,
            run_id=uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            start_method="fork",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(self.folder / "logs")),
        )
        try:
            with _quiet():
                elastic_launch(config, _run_as_rank)(self)
        except BaseException as error:
            self.error = error.with_traceback(None)

    def _raise_cause(self, request: EndRequest) -> None:
        told = [json.loads(file.read_text()) for file in self.folder.glob("error-*.json")]
        told.sort(key=lambda one: (one["kinds"][0] == "RankError", one["time"]))
        if told:
            raise _as_raised(told[0]) from None
        if request.number is not None:
            shutil.rmtree(self.folder)
            os.kill(os.getpid(), request.number)
        raise RankError(_how_they_died(self.error)) from self.error


def _run_as_rank(launch: _Launch) -> None:
    """In a child: all that it does."""
    gc.freeze()  # to destroy what the parent has left might wait for threads that only it has
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.close(launch.writer)
    Thread(target=_end_with_parent, args=(launch.reader,), daemon=True).start()
    if shell := notebook_shell():
        shell.display_pub.publish = partial(_publish, launch.shows)
    try:
        launch.work()
        dist.destroy_process_group()
    except BaseException as error:
        _tell(error, launch.folder)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # it is told; nobody else need print it


def _end_with_parent(reader: int) -> None:
    os.read(reader, 1)  # until nobody has the other end
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_END_S)
    os._exit(1)


def _publish(shows: Any, data: Any, metadata: Any = None, source: Any = None, **how: Any) -> None:
    """Display something in a notebook, which only the process that was forked can do."""
    if os.environ["RANK"] == "0":
        message = {"data": data, "metadata": metadata, **how}
        shows.send_bytes(json.dumps(message, default=_as_text).encode())


def _as_text(png: bytes) -> str:
    return base64.b64encode(png).decode()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch logs about processes that fail, nor Python about forks with threads."""
    names = ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing")
    loggers = [logging.getLogger(n) for n in logging.root.manager.loggerDict if n.startswith(names)]
    before = [(logger, logger.disabled) for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            # where stderr is a notebook's or a test's, and no file
            warnings.filterwarnings("ignore", "Unable to enable fault handler", UserWarning)
            yield
    finally:
        for logger, disabled in before:
            logger.disabled = disabled


# Errors


def _tell(error: BaseException, folder: Path) -> None:
    """Write down what ended this process."""
    rank = int(os.environ["RANK"])
    told: dict[str, Any] = {
        "rank": rank,
        "time": time.time(),
        "kinds": [cls.__name__ for cls in type(error).__mro__],
        "text": str(error),
        "trace": "".join(traceback.format_exception(error)),
    }
    if isinstance(error, Preempted):
        checkpoint = error.checkpoint and str(error.checkpoint)
        told |= {"left": [error.code, error.reason, checkpoint]}
    (folder / f"error-{rank}.part").write_text(json.dumps(told))
    (folder / f"error-{rank}.part").rename(folder / f"error-{rank}.json")


def _as_raised(told: dict[str, Any]) -> BaseException:
    """What ended a process, to be raised in this one."""
    if "left" in told:
        code, reason, checkpoint = told["left"]
        return Preempted(code, reason, checkpoint and Path(checkpoint))
    raised: TreadleError
    kinds = [getattr(errors, kind, None) for kind in told["kinds"]]
    ours = next((cls for cls in kinds if cls is not None), None)
    if ours is RankError:
        raised = RankError(told["text"])
    elif ours is not None:
        raised = ours(f"{told['text']} (in the process of rank {told['rank']})")
    else:
        raised = RankError(f"rank {told['rank']} raised {told['kinds'][0]}: {told['text']}")
    raised.add_note(f"In the process of rank {told['rank']}:\n{told['trace']}")
    return raised


def _how_they_died(error: BaseException | None) -> str:
    failures = getattr(error, "failures", {})
    for rank, failure in failures.items():
        if failure.exitcode < 0:
            return (
                f"rank {rank} was ended by {signal.Signals(-failure.exitcode).name}; if memory ran "
                "out, give smaller batches or fewer processes."
            )
    return f"the processes could not be started: {error}"
