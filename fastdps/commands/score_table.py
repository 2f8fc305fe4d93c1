"""The table of `fastdps score`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_ranking(title: str, rows: Sequence[tuple[str, float]], *, of: int) -> None:
    """Print images with their distances, the nearest first; `of` is how many there are, those not shown included."""
    console = Console()
    console.print(escape(title), style="bold", soft_wrap=True)
    table = Table()
    table.add_column("rank", justify="right")
    table.add_column("image", overflow="fold")
    table.add_column("distance", justify="right")
    for rank, (name, distance) in enumerate(rows, start=1):
        table.add_row(str(rank), escape(name), f"{distance:.5f}")
    console.print(table)
    if len(rows) < of:
        console.print(f"The nearest {len(rows):,} of {of:,}.")
