"""What a run or a comparison says to a person: the HTML report."""

from __future__ import annotations

from treadle.report.collect import collect
from treadle.report.comparison import write_comparison
from treadle.report.html import write_report
from treadle.report.watch import ReportCallback

__all__ = [
    "ReportCallback",
    "collect",
    "write_comparison",
    "write_report",
]
