"""Terminal tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

#: How many of the hardest and of the easiest contexts are listed.
LISTED = 3


def print_scores(scores: dict[str, Any], pair_rows: Sequence[tuple[str, float, float]], path: Path) -> None:
    """Print `scores.json` as tables, with the accuracy of each pair of distortions, and say where the file is.

    `pair_rows` holds a pair's name and its baseline and adapted accuracy, mean over contexts.
    """
    console = Console()
    summary, contexts = scores["summary"], scores["contexts"]
    console.print()
    console.print(
        f"[bold]{scores['backbone']}[/], {scores['variant']}, {scores['recipe']}: accuracy on held-out distortions "
        f"{summary['baseline_accuracy']:.4f} -> [bold]{summary['adapted_accuracy']:.4f}[/], mean over "
        f"{summary['contexts']:,} contexts; [bold]{summary['improved_fraction']:.1%}[/] of them improved"
    )
    by_accuracy = sorted(contexts, key=lambda context: context["adapted_accuracy"])
    listed = min(LISTED, len(by_accuracy))
    table = Table(title="Contexts, least disruptive distortion first", title_justify="left")
    table.add_column("")
    table.add_column("ranking", no_wrap=True)
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for title, rows in (("hardest", by_accuracy[:listed]), ("easiest", by_accuracy[::-1][:listed])):
        for number, row in enumerate(rows):
            table.add_row(
                title if number == 0 else "",
                ", ".join(row["ranking"]),
                f"{row['baseline_accuracy']:.4f}",
                f"{row['adapted_accuracy']:.4f}",
            )
        table.add_section()
    console.print(table)
    table = Table(title="Pairs of distortions, mean over contexts", title_justify="left")
    table.add_column("pair")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for pair, baseline, adapted in pair_rows:
        table.add_row(pair, f"{baseline:.4f}", f"{adapted:.4f}")
    console.print(table)
    console.print(f"Scores: {path}", soft_wrap=True)
