"""How the processes of a run find one another, or say who is missing.

torchrun's variables tell each where to meet: at a store that torchrun's agent keeps there, else
rank 0. The agent's stays the same when torchrun starts a run again, with all that was written in it
before. So each process asks under a name that is new, rank 0 answers with a name for this meeting,
and all else is written under that.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from threading import Thread
from typing import Any
from uuid import uuid4

import torch
from torch import distributed

from treadle.errors import RankError, UsageError

dist: Any = distributed  # which does not say that its stores are public
_POLL_S = 0.01  # a wait in the store could not be interrupted by Ctrl-C
_GRACE_S = 5.0  # for what rank 0 says of those who are missing


def join(timeout: timedelta) -> None:
    """Connect this process to the others of its run.

    Raises:
        UsageError: for variables that cannot be meant.
        RankError: if the others do not come in time.
    """
    meeting = _Meeting(timeout)
    try:
        store = dist.PrefixStore(meeting.agree(), meeting.store)
    except RuntimeError as error:
        raise RankError(
            f"what the processes were to meet at, {meeting.place}, is gone, and with it rank 0 or "
            f"torchrun itself; see what these say. ({_first_line(error)})"
        ) from error
    # Where there are fewer GPUs than processes, these train on the CPU. One that was forked after
    # its parent had looked at the GPUs cannot use them.
    gpus = 0 if torch.cuda._is_in_bad_fork() else torch.cuda.device_count()
    on_gpu = gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    try:
        dist.init_process_group(
            backend, store=store, rank=meeting.rank, world_size=meeting.size, timeout=timeout
        )
    except RuntimeError as error:
        raise RankError(
            f"the {meeting.size} processes met at {meeting.place}, but rank {meeting.rank} could "
            "not connect to the others; see that all still run, that no firewall is between them, "
            "and that GLOO_SOCKET_IFNAME, if set, names a network they share. "
            f"({_first_line(error)})"
        ) from error


class _Meeting:
    def __init__(self, timeout: timedelta) -> None:
        self.seconds = timeout.total_seconds()
        self.until = time.monotonic() + self.seconds
        self.rank, self.size = _number("RANK"), _number("WORLD_SIZE", 1)
        if self.rank >= self.size:
            raise UsageError(
                f"RANK={self.rank} cannot be with WORLD_SIZE={self.size}; ranks go from 0 to "
                f"{self.size - 1}."
            )
        self.address, self.port = _given("MASTER_ADDR"), _number("MASTER_PORT", 1, 65535)
        self.place = f"{self.address}:{self.port}"
        kept_by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self.keeps_store = self.rank == 0 and not kept_by_agent
        self.store = self._connect(timeout)

    def _connect(self, timeout: timedelta) -> Any:
        """In a thread, since a program at that port that is no store would not be left again."""
        found: list[Any] = []

        def connect() -> None:
            try:
                store = dist.TCPStore(
                    self.address,
                    self.port,
                    self.size,
                    self.keeps_store,
                    timeout,
                    wait_for_workers=False,
                    multi_tenant=True,
                )
            except RuntimeError as error:
                found.append(error)
            else:
                found.append(store)

        thread = Thread(target=connect, daemon=True)
        thread.start()
        thread.join(self.seconds)
        if found and not isinstance(found[0], RuntimeError):
            return found[0]
        raise self._unconnected(found[0] if found else None) from (found[0] if found else None)

    def _unconnected(self, error: RuntimeError | None) -> RankError:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            return RankError(
                f"port {self.port} is in use by another program, and the processes were to meet "
                "there; give torchrun another --master-port, or --standalone, which finds one."
            )
        try:
            socket.getaddrinfo(self.address, self.port)
        except OSError:
            return RankError(
                f"MASTER_ADDR={self.address!r} is the name of no machine that is known on "
                f"{socket.gethostname()}; give the address of the one with rank 0 "
                "(torchrun --master-addr)."
            )
        why = f" ({_first_line(error)})" if error else ""
        return RankError(
            f"rank {self.rank} found nobody at {self.place} within {self.seconds:g} s, where the "
            "processes were to meet; see that the one with rank 0 was started, on that machine, "
            f"and that its port can be reached.{why}"
        )

    def agree(self) -> str:
        """A name for this meeting, when all are there."""
        name = f"treadle/{uuid4().hex}" if self.rank == 0 else self._ask()
        if self.store.add(f"{name}/taken/{self.rank}", 1) > 1:
            raise UsageError(f"RANK={self.rank} was given to two processes; each has its own.")
        self.store.set(f"{name}/here/{self.rank}", str(self.size))
        wrong = self._await_all(name) if self.rank == 0 else self._wait(f"{name}/wrong", _GRACE_S)
        if wrong:
            raise RankError(wrong)
        return name

    def _ask(self) -> str:
        mine = uuid4().hex
        self.store.set(f"treadle/asks/{self.rank}", mine)
        return self._wait(f"treadle/answer/{mine}")

    def _wait(self, key: str, grace: float = 0.0) -> str:
        while (value := self._read(key)) is None:
            if self._is_over(grace):
                raise RankError(
                    f"rank 0 did not come to {self.place} within {self.seconds:g} s, where rank "
                    f"{self.rank} waited for it; see what that process says."
                )
            time.sleep(_POLL_S)
        return value

    def _await_all(self, name: str) -> str:
        """What is wrong with this meeting, told to all; "" if all are there."""
        sizes: dict[int, str] = {}
        answered: set[str] = set()
        while len(sizes) < self.size and not self._is_over():
            for rank in sorted({*range(self.size)} - sizes.keys()):
                asks = self._read(f"treadle/asks/{rank}")
                if asks is not None and asks not in answered:  # it may be one of an earlier meeting
                    answered.add(asks)
                    self.store.set(f"treadle/answer/{asks}", name)
                size = self._read(f"{name}/here/{rank}")
                if size is not None:
                    sizes[rank] = size
            time.sleep(_POLL_S)
        wrong = self._wrong(sizes)
        self.store.set(f"{name}/wrong", wrong)
        if wrong and self.keeps_store:
            time.sleep(50 * _POLL_S)  # it goes with this process; let the others read that
        return wrong

    def _wrong(self, sizes: dict[int, str]) -> str:
        other = next((rank for rank, size in sizes.items() if size != str(self.size)), None)
        if other is not None:
            return (
                f"rank 0 was told WORLD_SIZE={self.size} and rank {other} {sizes[other]}; start "
                "all with the same number of processes."
            )
        missing = sorted({*range(self.size)} - sizes.keys())
        if missing:
            return (
                f"{ranks(missing)} did not come to {self.place} within {self.seconds:g} s, where "
                f"{self.size} processes were to meet; see that all were started (torchrun --nnodes "
                "and --nproc-per-node alike on all machines), and what the missing ones say."
            )
        return ""

    def _read(self, key: str) -> str | None:
        return self.store.get(key).decode() if self.store.check([key]) else None

    def _is_over(self, grace: float = 0.0) -> bool:
        return time.monotonic() > self.until + grace


def ranks(numbers: Sequence[int]) -> str:
    """Ranks by name, at most eight.

    >>> ranks([1]), ranks([1, 2, 3])
    ('rank 1', 'ranks 1, 2 and 3')
    """
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    shown = [*map(str, numbers[:8])]
    last = f"{len(numbers) - 8} more" if len(numbers) > 8 else shown.pop()
    return f"ranks {', '.join(shown)} and {last}"


def _number(name: str, least: int = 0, most: float = math.inf) -> int:
    given = _given(name)
    if not given.isdecimal() or not least <= int(given) <= most:
        span = f"from {least} on" if most == math.inf else f"from {least} to {most}"
        raise UsageError(f"{name}={given!r} cannot be meant; torchrun gives a number {span}.")
    return int(given)


def _given(name: str) -> str:
    given = os.environ.get(name, "").strip()
    if not given:
        raise UsageError(
            f"{name} is not set, though TORCHELASTIC_RUN_ID says that torchrun started this "
            "process; torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."
        )
    return given


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
