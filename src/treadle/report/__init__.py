"""What a run says to a person: the HTML report, and what the model takes for what."""

from __future__ import annotations

from treadle.report.collect import collect
from treadle.report.html import write_report
from treadle.report.interpret import ClassificationInterpretation

__all__ = ["ClassificationInterpretation", "collect", "write_report"]
