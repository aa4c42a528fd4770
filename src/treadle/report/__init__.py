"""What a run says to a person: the HTML reports, and what the model takes for what."""

from __future__ import annotations

from treadle.report.collect import collect
from treadle.report.comparison import write_comparison
from treadle.report.html import write_report
from treadle.report.interpret import ClassificationInterpretation
from treadle.report.watch import ReportCallback

__all__ = [
    "ClassificationInterpretation",
    "ReportCallback",
    "collect",
    "write_comparison",
    "write_report",
]
