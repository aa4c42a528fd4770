"""The command line: `treadle train`."""

from treadle.cli.main import main

__all__ = ["main"]
