"""The other end of `peers.py`: measures what it is asked to, in the interpreter that runs it.

A line on stdin is a request, a line on stdout its answer, both JSON:
`{"prepare": "MODULE.FUNCTION", "arguments": {...}}` calls a function of a module beside this file,
which returns a turn, and answers with a name for it; `{"turn": NAME}` answers with what one turn
measured. The versions of the libraries that are installed are said first.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from common import Turn

LIBRARIES = (
    *("torch", "torchvision", "fastai", "heavyball", "torch-optimi"),
    *("lightning", "pytorch-ignite", "skorch", "transformers", "accelerate"),
)


def installed() -> dict[str, str]:
    """The versions of those of `LIBRARIES` that this interpreter has."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    print(json.dumps(installed()), file=answers)
    turns: dict[str, Turn] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "prepare" in request:
            module, function = request["prepare"].split(".")
            name = f"{request['prepare']} {len(turns)}"
            turns[name] = getattr(import_module(module), function)(**request["arguments"])
            answer: dict[str, Any] = {"name": name}
        else:
            answer = turns[request["turn"]]()
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
