"""SECURITY.md promises only what a test holds."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_promise_names_a_test_that_is_there() -> None:
    rows = [
        line
        for line in (ROOT / "SECURITY.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| File |")
    ]
    assert len(rows) > 15
    for row in rows:
        found = re.search(r"\| `([\w/]+\.py)::(test_\w+)` \|$", row)
        assert found, row
        assert re.search(rf"^def {found[2]}\(", (ROOT / found[1]).read_text(), re.M), row
