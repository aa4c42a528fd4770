"""Tables for a terminal."""

from __future__ import annotations

from typing import Any


def print_table(table: Any) -> None:
    """Print a table of rich's: on a terminal as wide as that is, else as wide as it needs."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        console = Console(width=max(needed, 1))
    with console.capture() as drawn:
        console.print(table, highlight=False)
    print("\n".join(line.rstrip() for line in drawn.get().splitlines()))
