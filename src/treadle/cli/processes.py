"""The command in several processes, which torchrun starts: the main one speaks for all."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from treadle.errors import UsageError

if TYPE_CHECKING:
    from treadle.cli.train import TrainSettings
    from treadle.loop.parallel import Parallel

T = TypeVar("T")

TOGETHER = ("train", "resume")
"""The verbs that several processes do together."""

PATIENCE = 5.0
"""Seconds after which a process that failed tells it itself."""


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", 0)) if launched() else 0


def processes() -> int:
    """How many processes torchrun started; 1 where it started none."""
    return int(os.environ.get("WORLD_SIZE", 1)) if launched() else 1


def command() -> str:
    """How the command is called with so many processes."""
    if processes() == 1:
        return "treadle"
    each = os.environ.get("LOCAL_WORLD_SIZE", processes())
    return f"torchrun --nproc-per-node={each} -m treadle"


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def strategy(args: TrainSettings) -> Parallel | None:
    """How several processes share the model."""
    from treadle.distributed import DDP, FSDP
    from treadle.world import world

    if world().size == 1:
        return None
    return FSDP(args.sync_bn) if args.parallel == "fsdp" else DDP(args.sync_bn)


@contextmanager
def in_one_voice(argv: Sequence[str]) -> Iterator[None]:
    """Of several processes only the main one prints and warns in the block.

    Raises:
        UsageError: for a verb that is for one process.
    """
    with ExitStack() as stack:
        if rank() > 0:
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        verb = next((arg for arg in argv if not arg.startswith("-")), None)
        if processes() > 1 and verb == "doctor" and rank() > 0:
            raise SystemExit(0)
        if processes() > 1 and verb not in (*TOGETHER, "doctor", None):
            raise UsageError(
                f"{verb} is for one process, and torchrun started {processes()}; run it "
                "without torchrun."
            )
        yield


def let_main_speak() -> None:
    """Give the main process the time to say what went wrong: it mostly knows, and when it has
    ended, the launcher ends this one, here. Of those that go on, the first one speaks."""
    if rank() > 0:
        time.sleep(PATIENCE + 0.5 * (rank() - 1))


def note_failure(sentence: str) -> None:
    """Let torchrun name the cause in what it prints at the very end."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is None:
        return
    told = {"py_callstack": sentence, "timestamp": str(int(time.time()))}
    with suppress(OSError):
        Path(file).write_text(json.dumps({"message": {"message": sentence, "extraInfo": told}}))


@contextmanager
def on_main(make: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """The context of `make()` in the main process; the others get what it gives."""
    from treadle.world import world

    with ExitStack() as stack:
        yield world().on_main(lambda: stack.enter_context(make()))
