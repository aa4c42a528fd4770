"""The entry point: reads the arguments, runs the verb, and turns what goes wrong into one line.

Exit status: 0 done; 1 failed; 2 wrong use or bad data; a run that can go on with `treadle resume`:
75 after its time limit, 130 after Ctrl-C, 143 after SIGTERM, 138 after SIGUSR1 (128 + the signal).
A second signal ends the process at once. Of several processes one says what went wrong, and the
status is the same.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import App, CycloptsError

from treadle.cli.processes import in_one_voice, let_main_speak, note_failure, rank
from treadle.errors import TreadleError, printable

DESCRIPTION = "Train models with PyTorch: open every part of training, and pay nothing for it."


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command `treadle` with `argv` (by default the process's own) and exit."""
    sys.exit(run(sys.argv[1:] if argv is None else list(argv)))


def run(argv: list[str]) -> int:
    """Run the command and give its exit status; what goes wrong becomes one line on stderr."""
    try:
        with in_one_voice(argv):
            app()(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except SystemExit as left:  # a run that was left with a checkpoint, and has said so
        return left.code if isinstance(left.code, int) else 1
    except KeyboardInterrupt:
        if rank() == 0:
            print("treadle: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        let_main_speak()
        if "--debug" in argv:
            traceback.print_exc()
        return explain(error)
    return 0


def app() -> App:
    """The verbs."""
    from treadle import __version__
    from treadle.cli.compare import compare
    from treadle.cli.convert import convert
    from treadle.cli.data import data
    from treadle.cli.doctor import doctor
    from treadle.cli.info import info
    from treadle.cli.report import report
    from treadle.cli.resume import resume
    from treadle.cli.runs import runs
    from treadle.cli.train import train

    verbs = App(
        name="treadle",
        help=DESCRIPTION,
        version=__version__,
        help_format="markdown",
        suppress_keyboard_interrupt=False,  # `run` ends it, in a sentence
    )
    verbs.command(train)
    verbs.command(resume)
    verbs.command(runs)
    verbs.command(info)
    verbs.command(compare)
    verbs.command(data())
    verbs.command(report)
    verbs.command(convert)
    verbs.command(doctor)
    return verbs


def explain(error: Exception) -> int:
    """Say in one line on stderr what went wrong, and give the exit status for it."""
    foreseen = isinstance(error, (TreadleError, CycloptsError))
    text = printable(" ".join(str(error).split()))
    if isinstance(error, CycloptsError):
        text += " See treadle --help." if "--help" not in text else ""
    elif not foreseen:
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    sentence = f"treadle: {f'rank {rank()}: ' if rank() else ''}{text}"
    print(sentence, file=sys.stderr)
    note_failure(sentence)
    return 2 if foreseen else 1
