"""`python -m bench compare A B`: what moved between two results files beyond the noise.

rows of A, rows of B --same stage and what--> median, quartiles --change against noise--> better, worse, same
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from bench.analyse.results import read_results
from bench.analyse.tables import BUSY, PLAIN_WIDTH, describe, format_value
from bench.harness.measure import COSTS
from fastdps.errors import ConfigError, FastDPSError

#: Runs of the same code differ by so much, whatever the quartiles within each say: a start lands on another core or
#: page. Rows of less than three samples have no quartiles to speak of.
FLOOR, FEW_SAMPLES, FLOOR_OF_FEW = 0.05, 3, 0.20

By = Literal["rate", "share"]
Verdict = Literal["better", "worse", "same"]
Key = tuple[str, str]


class Value(NamedTuple):
    """The median and the quartiles of one row, and how many samples they are of."""

    median: float
    low: float
    high: float
    samples: int

    @property
    def width(self) -> float:
        """What lies between the quartiles, as a share of the median."""
        return (self.high - self.low) / self.median


@dataclass(frozen=True)
class Change:
    """One row before and after. `less_is_better` is that of its unit."""

    key: Key
    unit: str
    before: Value
    after: Value
    floor: float = FLOOR

    @property
    def change(self) -> float:
        """The change of the median: 0.1 is a tenth more."""
        return self.after.median / self.before.median - 1

    @property
    def noise(self) -> float:
        """The change that may be noise: both widths together, and never below the floor."""
        few = min(self.before.samples, self.after.samples) < FEW_SAMPLES
        floor = max(self.floor, FLOOR_OF_FEW) if few else self.floor
        return max(floor, self.before.width + self.after.width)

    @property
    def verdict(self) -> Verdict:
        """Better or worse if the larger median is above the smaller one by more than the noise."""
        low, high = sorted((self.before.median, self.after.median))
        if high / low - 1 <= self.noise:
            return "same"
        return "better" if (self.change > 0) != (self.unit in COSTS) else "worse"


@dataclass(frozen=True)
class Comparison:
    """All rows of two files. `incomparable` are rows of both, with the reason."""

    changes: Sequence[Change]
    only_before: Sequence[Key]
    only_after: Sequence[Key]
    incomparable: Mapping[Key, str]
    warnings: Sequence[str]

    def of(self, verdict: Verdict) -> list[Change]:
        """The rows with one verdict."""
        return [change for change in self.changes if change.verdict == verdict]


def compare(before: dict[str, Any], after: dict[str, Any], *, by: By = "rate", floor: float = FLOOR) -> Comparison:
    """Compare two results files' contents, by the rates (or costs) themselves or by their shares of the limit."""
    old, new = ({(row["stage"], row["what"]): row for row in results["measurements"]} for results in (before, after))
    changes, incomparable = [], {}
    for key in (key for key in old if key in new):
        reason = _why_not(old[key], new[key], by)
        if reason:
            incomparable[key] = reason
            continue
        values = [_value(row, by) for row in (old[key], new[key])]
        changes.append(Change(key, "share" if by == "share" else new[key]["unit"], values[0], values[1], floor))
    return Comparison(
        changes,
        [key for key in old if key not in new],
        [key for key in new if key not in old],
        incomparable,
        warnings(before, after),
    )


def _why_not(old: dict[str, Any], new: dict[str, Any], by: By) -> str | None:
    """Why two rows of one name do not compare; None if they do."""
    if old["unit"] != new["unit"]:
        return f"its unit was {old['unit']} and is {new['unit']}"
    if by == "share":
        limits = [row["limit"]["what"] if row["limit"] else None for row in (old, new)]
        if None in limits:
            return "it has no limit"
        if limits[0] != limits[1]:
            return f"its limit was {limits[0]} and is {limits[1]}"
    return None


def _value(row: dict[str, Any], by: By) -> Value:
    of = row["share"] if by == "share" else row
    return Value(of["median"], of["low"], of["high"], len(row["samples"]))


def warnings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What makes the comparison doubtful: other machines, versions or settings, a busy machine."""
    found = []
    keys = {
        "machine": ("cpu", "cores", "gpu"),
        "versions": sorted({*before["versions"], *after["versions"]} - {"fastdps"}),
        "settings": ("device", "quick", "images", "source", "torch_threads"),
    }
    for part, names in keys.items():
        for name in names:
            old, new = (results[part].get(name) for results in (before, after))
            if old != new:
                found.append(f"{part} differ: {name} was {old} and is {new}")
    if any(warning.startswith("machine") for warning in found):
        found.append("rates of different machines say nothing about the code; shares (--by share) say more")
    for which, results in (("first", before), ("second", after)):
        load = results["machine"]["load_average"]
        if load > BUSY:
            found.append(f"the machine was busy before the {which} run: load average {load}")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench compare`."""
    parser.add_argument("before", type=Path, metavar="A", help="results file")
    parser.add_argument("after", type=Path, metavar="B", help="results file that is held against it")
    parser.add_argument("--by", choices=get_args(By), default="rate", help="compare rates, or shares of the limit")
    parser.add_argument(
        "--floor", type=float, default=FLOOR, metavar="SHARE", help=f"what may always be noise (default {FLOOR})"
    )
    parser.add_argument("--all", action="store_true", help="show the rows that did not move, too")
    parser.add_argument("--fail-on-regression", action="store_true", help="exit with 1 if a row became worse")


def run(arguments: argparse.Namespace) -> None:
    """Compare and show. Raises `ConfigError` if no row compares, and if asked to `FastDPSError` on a regression."""
    if not arguments.floor >= 0:
        raise ConfigError(f"--floor must be 0 or more, not {arguments.floor}.")
    before, after = read_results(arguments.before), read_results(arguments.after)
    comparison = compare(before, after, by=arguments.by, floor=arguments.floor)
    if not comparison.changes:
        raise ConfigError(f"{arguments.before} and {arguments.after} have no row that compares by {arguments.by}.")
    print_comparison(before, after, comparison, every=arguments.all)
    worse = comparison.of("worse")
    if arguments.fail_on_regression and worse:
        rows = "; ".join(", ".join(change.key) for change in worse)
        raise FastDPSError(f"{len(worse)} of {len(comparison.changes)} rows became worse beyond the noise: {rows}.")


def print_comparison(before: dict[str, Any], after: dict[str, Any], comparison: Comparison, *, every: bool) -> None:
    """Warnings, a table of what moved (or of every row), and what is in one file only."""
    from rich.console import Console
    from rich.table import Table

    console = Console() if Console().is_terminal else Console(width=PLAIN_WIDTH)
    console.print(f"A: {describe(before)}\nB: {describe(after)}", highlight=False)
    for warning in comparison.warnings:
        console.print(f"[yellow]warning:[/] {warning}.", highlight=False)
    table = Table()
    for name in ("stage", "what", "A", "B", "change", "noise", ""):
        table.add_column(name, justify="left" if name in ("stage", "what", "") else "right")
    shown = [change for change in comparison.changes if every or change.verdict != "same"]
    colours = {"better": "[green]better[/]", "worse": "[red]worse[/]", "same": ""}
    for change in shown:
        values = (_show(value, change.unit) for value in (change.before.median, change.after.median))
        noise = f"{change.noise:.0%}"
        table.add_row(*change.key, *values, f"{change.change:+.0%}", noise, colours[change.verdict])
    if shown:
        console.print(table)
    counts = {verdict: len(comparison.of(verdict)) for verdict in get_args(Verdict)}
    console.print(f"{counts['better']} rows better, {counts['worse']} worse, {counts['same']} within the noise.")
    for name, keys in (("A", comparison.only_before), ("B", comparison.only_after)):
        for key in keys:
            console.print(f"only in {name}: {', '.join(key)}", highlight=False)
    for key, reason in comparison.incomparable.items():
        console.print(f"not compared: {', '.join(key)}: {reason}", highlight=False)


def _show(value: float, unit: str) -> str:
    return f"{value:.0%}" if unit == "share" else format_value(value, unit) + (unit == "images/s") * " /s"
