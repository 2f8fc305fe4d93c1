"""Terminal tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

#: How many of the hardest and of the easiest contexts are listed.
LISTED = 3


def print_scores(scores: Mapping[str, Any], pair_rows: Sequence[tuple[str, float, float]]) -> None:
    """Print the contexts of `scores.json` as tables, with the accuracy of each pair of distortions.

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


def print_bapps(bapps: Mapping[str, Any]) -> None:
    """Print what `score_bapps` of `fastdps.evaluation.judgements` returns: a row per sub-set, and its averages below.

    "after" is the mean over contexts. Averages that are null are left out.
    """
    table = Table(title="Agreement with human judgement", title_justify="left")
    table.add_column("sub-set", overflow="fold")
    for heading in ("samples", "human", "before", "after", "worst context"):
        table.add_column(heading, justify="right")
    for test, title in (("2afc", "2AFC"), ("jnd", "JND mAP")):
        for name, scores in bapps[test].items():
            table.add_row(f"{title} {name}", *_bapps_cells(scores))
        table.add_section()
        for average in ("distort", "real", "all") if test == "2afc" else ("jnd",):
            if scores := bapps["averages"][average]:
                name = "mean" if average == "jnd" else average
                table.add_row(f"{title} {name} of {len(scores['of'])}", *_bapps_cells(scores), style="bold")
        table.add_section()
    Console().print(table)


def _bapps_cells(scores: Mapping[str, Any]) -> list[str]:
    human = "" if scores["human"] is None else f"{scores['human']:.4f}"
    after = (scores["baseline"], scores["adapted"], min(scores["contexts"]))
    return [f"{scores['samples']:,}", human, *(f"{score:.4f}" for score in after)]


def print_sweep(summary: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Print a sweep: a row per case, and over all of them the means with confidence intervals."""
    console = Console()
    table = Table(title="Cases", title_justify="left")
    table.add_column("case", overflow="fold")
    for heading in ("before", "after", "worst", "improved"):
        table.add_column(heading, justify="right")
    for name, case in scores.items():
        worst = min(context["adapted_accuracy"] for context in case["contexts"])
        of_case = case["summary"]
        table.add_row(
            name,
            f"{of_case['baseline_accuracy']:.4f}",
            f"{of_case['adapted_accuracy']:.4f}",
            f"{worst:.4f}",
            f"{of_case['improved_fraction']:.1%}",
        )
    console.print(table)
    for name, value in summary.items():
        if isinstance(value, dict):
            interval = f"{value['low']:.4f} to {value['high']:.4f}"
            console.print(f"{name.replace('_', ' ')}: {value['mean']:.4f} ({summary['confidence']:.0%}: {interval})")
    console.print(f"Table: {out / 'sweep.csv'}, {out / 'sweep.json'}", soft_wrap=True)
