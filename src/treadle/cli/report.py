"""`treadle report`: the page of a run or a comparison, made again, alone or beside another run."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from treadle.errors import DataError, UsageError


@Parameter(name="*")
@dataclass(frozen=True)
class ReportSettings:
    """What `treadle report` can be told."""

    run: Path
    """The folder of a run or a comparison, as runs/DATE-TIME-NAME."""
    _: KW_ONLY
    against: Path | None = None
    """The folder of another run: differing settings, results and losses side by side."""
    out: Path | None = None
    """The file to write [default: report.html in the folder; with --against, against-OTHER.html]"""
    debug: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Show the full traceback of an error."""


def report(args: ReportSettings) -> None:
    """Write the report of a run, from what its folder holds.

    `treadle train` writes one itself; this makes it again, or with `--against` a page that begins
    with what differs between two runs. Of the folder of `treadle compare`, its page is made again.
    """
    from treadle.report import write_comparison, write_report
    from treadle.run import read_record

    file = args.run / "comparison.json"
    if file.is_file():
        if args.against is not None:
            raise UsageError(
                f"--against takes two runs, and {args.run} is a comparison; leave --against out."
            )
        path = write_comparison(read_comparison(file), args.out or args.run / "report.html")
    elif args.against is None:
        path = write_report(read_record(args.run), args.out or args.run / "report.html")
    else:
        # The name of a folder given as "." or ".." is known only once it is resolved.
        name = f"against-{args.against.resolve().name}.html"
        record, other = read_record(args.run), read_record(args.against)
        path = write_report(record, args.out or args.run / name, other)
    print(f"report   {path}")


def read_comparison(file: Path) -> Any:
    """The comparison that `comparison.json` holds; DataError if it is damaged."""
    from treadle.study import Comparison

    try:
        plain = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is not readable JSON ({error}); restore it.") from error
    return Comparison.from_dict(plain)
