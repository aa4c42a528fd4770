"""fastai in a process of its own, that of another interpreter, which takes turns with this one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import Sample, Turn

SIDE = Path(__file__).with_name("fastai_side.py")


class Fastai:
    """The process: it stays alive, and measures one turn for each line that it is sent.

    While this side measures, that side waits for a line, and the other way round; so both see the
    same machine.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.versions: dict[str, str] = self._answer()

    def prepare(self, workload: str, **arguments: Any) -> Turn:
        """Have a contestant of fastai_side.py made; returns what takes a turn of it."""
        name = self._ask({"prepare": workload, "arguments": arguments})["name"]

        def turn() -> Sample:
            return self._ask({"turn": name})

        return turn

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("The fastai process has ended; its last words are above.")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def fastai_peer(python: str | None) -> Iterator[Fastai | None]:
    """fastai run by the interpreter `python`, or None where none is given."""
    if python is None:
        yield None
        return
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [python, str(SIDE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        try:
            yield Fastai(process)
        finally:
            process.terminate()
