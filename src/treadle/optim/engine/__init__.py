"""How a chain is executed. One function is the face: `run_chain`."""

from __future__ import annotations

from treadle.optim.engine.reference import run_chain

__all__ = ["run_chain"]
