"""Contestants in processes of their own, of this or another interpreter, taking turns with us."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common import Sample, Turn

SIDE = Path(__file__).with_name("side.py")


class SideLost(Exception):
    """A side ended, or did not answer in time; the message says which."""


class Side:
    """The process: it stays alive, and measures one turn for each line that it is sent.

    While this side measures, that side waits for a line, and the other way round; so both see the
    same machine. `versions` are those of the libraries that it finds.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.versions: dict[str, str] = self._answer()

    def prepare(self, workload: str, limit: float | None = None, **arguments: Any) -> Turn:
        """Have a contestant made by `workload`, "module.function"; returns what takes its turns.

        Each of its turns may take `limit` seconds; then SideLost is raised.
        """
        name = self._ask({"prepare": workload, "arguments": arguments})["name"]

        def turn() -> Sample:
            return self._ask({"turn": name}, limit)

        return turn

    def _ask(self, request: dict[str, Any], limit: float | None = None) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer(limit)

    def _answer(self, limit: float | None = None) -> dict[str, Any]:
        assert self._process.stdout is not None
        # There is one line to each request, so nothing is left in the buffer that select misses.
        if not select.select([self._process.stdout], [], [], limit)[0]:
            raise SideLost(f"took longer than {limit:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise SideLost("its process has ended; the last words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def side(python: str = sys.executable, **env: str) -> Iterator[Side]:
    """A side run by the interpreter `python`, with `env` added to its environment."""
    inherited = dict(os.environ)
    if python != sys.executable:
        inherited.pop("PYTHONPATH", None)  # it shows the way to libraries of this interpreter
    with subprocess.Popen(
        [python, str(SIDE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**inherited, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": "", **env},
        start_new_session=True,
    ) as process:
        try:
            yield Side(process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # with the workers that a compiler has started


def homes(pythons: Sequence[str]) -> dict[str, str]:
    """Which of the interpreters `pythons` has which library; the first that has it, if several."""
    found: dict[str, str] = {}
    for python in pythons:
        with side(python) as it:
            found = {**dict.fromkeys(it.versions, python), **found}
    return found


@contextmanager
def sides(where: Mapping[str, str], **env: str) -> Iterator[dict[str, Side]]:
    """A side for each library of `where`, as `homes` gives it; one process an interpreter."""
    with ExitStack() as stack:
        pythons = {python: stack.enter_context(side(python, **env)) for python in {*where.values()}}
        yield {library: pythons[python] for library, python in where.items()}
