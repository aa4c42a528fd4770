"""Functions run in several processes at once, connected as torchrun connects them.

They are forked, after all imports, so that a test with two of them takes half a second.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import signal
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo  # torch's DDP imports it late, which takes seconds in each process

WAIT = 60.0
"""Seconds for all processes to end."""


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def on_ranks(n: int, work: Callable[..., Any], *args: Any, wait: float = WAIT) -> list[Any]:
    """What `work(*args)` returned in each of `n` processes, by rank.

    Raises the error of the first one that failed, as an AssertionError with its traceback. No
    process is left behind.
    """
    found = outcomes(n, work, *args, wait=wait)
    for rank, (kind, what) in enumerate(found):
        assert kind == "returned", f"rank {rank} of {n} {kind} {what}"
    return [what for _, what in found]


def outcomes(
    n: int, work: Callable[..., Any], *args: Any, wait: float = WAIT, **env: str
) -> list[tuple[str, Any]]:
    """How each process ended: ("returned", value), ("raised", traceback), ("died", exit code) or
    ("hung", "")."""
    fork = mp.get_context("fork")
    port, began = free_port(), time.monotonic()
    pipes = [fork.Pipe(duplex=False) for _ in range(n)]
    processes = [
        fork.Process(target=_as_rank, args=(rank, n, port, env, pipes[rank][1], work, args))
        for rank in range(n)
    ]
    for process, (_, sender) in zip(processes, pipes, strict=True):
        process.start()
        sender.close()
    found: list[tuple[str, Any]] = []
    try:
        for process, (receiver, _) in zip(processes, pipes, strict=True):
            left = max(wait - (time.monotonic() - began), 0.01)
            if not receiver.poll(left):
                found.append(("hung", ""))
                continue
            try:
                found.append(pickle.loads(receiver.recv_bytes()))
            except EOFError:
                process.join(left)
                found.append(("died", process.exitcode))
    finally:
        for process in processes:
            process.join(2)
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
                process.join()
    return found


def _as_rank(
    rank: int, n: int, port: int, env: dict[str, str], pipe: Any, work: Any, args: Any
) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork, and the cores are shared
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(n),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
        TREADLE_TIMEOUT=env.get("TREADLE_TIMEOUT", "30"),
    )
    os.environ.update(env)
    try:
        outcome = "returned", work(*args)
    except BaseException:
        outcome = "raised", traceback.format_exc()
    pipe.send_bytes(pickle.dumps(outcome))  # tensors whole, not as files shared with the parent
    pipe.close()
    os._exit(0)  # without the parent's exit handlers and pytest's
