"""`python -m bench compare A B`: the changes between two results files that exceed the noise.

rows of A, rows of B --same stage and name--> median, quartiles --change versus noise--> better, worse, same
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

#: The minimum noise. Runs of the same code differ by this much, even with narrow quartiles within each: a process
#: starts on another core or page. Rows of fewer than three samples have no meaningful quartiles, and a higher minimum.
FLOOR, FEW_SAMPLES, FLOOR_OF_FEW = 0.05, 3, 0.20

By = Literal["rate", "share"]
Verdict = Literal["better", "worse", "same"]
Key = tuple[str, str]


class Value(NamedTuple):
    """The median, the quartiles and the number of samples of one row."""

    median: float
    low: float
    high: float
    samples: int

    @property
    def width(self) -> float:
        """The distance of the quartiles, as a share of the median."""
        return (self.high - self.low) / self.median


@dataclass(frozen=True)
class Change:
    """One row before and after.

    Attributes:
        key: The stage and the name of the row.
        unit: The unit, or "share" for shares of the limit.
        before: The value of the first file.
        after: The value of the second file.
        floor: The minimum noise.
    """

    key: Key
    unit: str
    before: Value
    after: Value
    floor: float = FLOOR

    @property
    def change(self) -> float:
        """The relative change of the median; 0.1 is an increase by 10 %."""
        return self.after.median / self.before.median - 1

    @property
    def noise(self) -> float:
        """The change that may be noise: the sum of both widths, but at least the floor."""
        few = min(self.before.samples, self.after.samples) < FEW_SAMPLES
        floor = max(self.floor, FLOOR_OF_FEW) if few else self.floor
        return max(floor, self.before.width + self.after.width)

    @property
    def verdict(self) -> Verdict:
        """Better or worse if the larger median exceeds the smaller one by more than the noise."""
        low, high = sorted((self.before.median, self.after.median))
        if high / low - 1 <= self.noise:
            return "same"
        return "better" if (self.change > 0) != (self.unit in COSTS) else "worse"


@dataclass(frozen=True)
class Comparison:
    """The comparison of two results files.

    Attributes:
        changes: The comparable rows.
        only_before: The rows of the first file only.
        only_after: The rows of the second file only.
        incomparable: Rows of both files that cannot be compared, with the reason.
        warnings: Reasons to doubt the comparison.
    """

    changes: Sequence[Change]
    only_before: Sequence[Key]
    only_after: Sequence[Key]
    incomparable: Mapping[Key, str]
    warnings: Sequence[str]

    def of(self, verdict: Verdict) -> list[Change]:
        """Return the rows with one verdict."""
        return [change for change in self.changes if change.verdict == verdict]


def compare(before: dict[str, Any], after: dict[str, Any], *, by: By = "rate", floor: float = FLOOR) -> Comparison:
    """Compare the contents of two results files.

    Args:
        before: The first file.
        after: The second file.
        by: "rate" compares rates (or costs), "share" compares shares of the limit.
        floor: The minimum noise, as a relative change.

    Returns:
        The comparison.
    """
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
    """Return the reason why two rows of the same name cannot be compared, or None."""
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
    """Return the reasons to doubt a comparison: another machine, versions or settings, or a busy machine."""
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
        found.append(
            "rates of different machines do not measure the code; compare shares of the limit (--by share) instead"
        )
    for which, results in (("first", before), ("second", after)):
        load = results["machine"]["load_average"]
        if load > BUSY:
            found.append(f"the machine was busy before the {which} run: load average {load}")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m bench compare`."""
    parser.add_argument("before", type=Path, metavar="A", help="results file")
    parser.add_argument("after", type=Path, metavar="B", help="results file to compare with A")
    parser.add_argument("--by", choices=get_args(By), default="rate", help="compare rates, or shares of the limit")
    parser.add_argument("--floor", type=float, default=FLOOR, metavar="SHARE", help=f"minimum noise (default {FLOOR})")
    parser.add_argument("--all", action="store_true", help="show unchanged rows too")
    parser.add_argument("--fail-on-regression", action="store_true", help="exit with status 1 if a row became worse")


def run(arguments: argparse.Namespace) -> None:
    """Compare and print. Raises `ConfigError` without comparable rows, and `FastDPSError` on a regression if asked."""
    if not arguments.floor >= 0:
        raise ConfigError(f"--floor must be 0 or more, not {arguments.floor}.")
    before, after = read_results(arguments.before), read_results(arguments.after)
    comparison = compare(before, after, by=arguments.by, floor=arguments.floor)
    if not comparison.changes:
        raise ConfigError(
            f"{arguments.before} and {arguments.after} have no row that can be compared by {arguments.by}."
        )
    print_comparison(before, after, comparison, every=arguments.all)
    worse = comparison.of("worse")
    if arguments.fail_on_regression and worse:
        rows = "; ".join(", ".join(change.key) for change in worse)
        raise FastDPSError(f"{len(worse)} of {len(comparison.changes)} rows became worse beyond the noise: {rows}.")


def print_comparison(before: dict[str, Any], after: dict[str, Any], comparison: Comparison, *, every: bool) -> None:
    """Print warnings, a table of the changed rows (or of every row), and the rows of one file only."""
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
