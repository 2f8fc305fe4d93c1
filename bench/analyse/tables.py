"""Results as people read them: a terminal table, and the Markdown tables of the READMEs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastdps.errors import ConfigError

#: Width in characters of a table that goes to a file.
PLAIN_WIDTH = 150
#: Load average before a run above which the results are unreliable.
BUSY = 0.7
#: Marker comments around the full table, in bench/README.md.
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
#: Marker comments around the summary, in the project's README.
SUMMARY_BEGIN, SUMMARY_END = "<!-- bench-summary:begin -->", "<!-- bench-summary:end -->"
#: Stage and name of the rows in the summary.
SUMMARY_ROWS = (
    ("accuracy", "lin, 720 contexts, to 0.79"),
    ("accuracy", "tune, 720 contexts, to 0.90, extrapolated from 3"),
    ("accuracy", "shared, 720 contexts, to 0.93"),
    ("accuracy", "the usual way, 1 context, whole process"),
    ("load", "raw 64 px"),
    ("train", "lin, 1 context"),
    ("train", "lin, 720 contexts"),
)


def print_results(results: dict[str, Any]) -> None:
    """Print every measurement with its quartiles, its limit and the ratio to the baseline."""
    console = Console() if Console().is_terminal else Console(width=PLAIN_WIDTH)
    table = Table(title=describe(results), title_justify="left")
    for name in ("stage", "what", "images/s", "quartiles", "limit", "share", "limit is", "x the usual way"):
        table.add_column(name, justify="left" if name in ("stage", "what", "limit is") else "right")
    last = None
    for row in results["measurements"]:
        if last not in (None, row["stage"]):
            table.add_section()
        limit, speedup = row["limit"], row["speedup"]
        table.add_row(
            row["stage"] if row["stage"] != last else "",
            row["what"],
            format_value(row["median"], row["unit"]),
            f"{format_number(row['low'])} - {format_number(row['high'])}",
            format_number(limit["median"]) if limit else "",
            f"{row['share']['median']:.0%}" if limit else "",
            limit["what"] if limit else "",
            f"{format_number(speedup['median'])} x" if speedup else "",
        )
        last = row["stage"]
    console.print(table)
    busy = results["machine"]["load_average"]
    if busy > BUSY:
        console.print(f"The machine was busy before the run (load average {busy}), so all rates are too low.")
    for row in results["measurements"]:
        if row["parts_s"]:
            console.print(f"{row['stage']}, {row['what']}: {_parts(row)}", soft_wrap=True, highlight=False)


def _parts(row: dict[str, Any]) -> str:
    """Return the time of each part of an image, with the bottleneck highlighted."""
    parts = [f"{name} {1e3 * part_s:.3g}" for name, part_s in row["parts_s"].items()]
    marked = [f"[bold]{part} (bottleneck)[/]" if part.startswith(row["bottleneck"] + " ") else part for part in parts]
    text = f"{1e3 / row['median']:.3g} ms per image; its parts, measured alone, in ms: " + ", ".join(marked)
    if "parts_sum_s" in row["notes"]:
        notes = row["notes"]
        text += f"; their sum {1e3 * notes['parts_sum_s']:.3g}, of whose rate {notes['parts_sum_share']:.0%} is reached"
    return text


def describe(results: dict[str, Any]) -> str:
    """Return the machine, the versions, the commit and the date in one line."""
    machine, versions, commit = results["machine"], results["versions"], results["commit"]
    hardware = f"{machine['cpu']}, {machine['cores']} cores" + (f", {machine['gpu']}" if machine["gpu"] else "")
    names = {"torch": "torch", "nvidia-dali-cuda130": "DALI"}
    packages = [f"{name} {versions[package]}" for package, name in names.items() if versions[package]]
    state = f"commit {commit['id'][:9]}" + (" with changes" if commit["dirty"] else "") if commit else "no commit"
    return f"{hardware}; Python {versions['python']}, {', '.join(packages)}; {state}, {results['date'][:10]}"


def headline_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the full table."""
    return [row for row in results["measurements"] if row["headline"]]


def summary_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the summary, in the order of `SUMMARY_ROWS`: time to accuracy first.

    Raises:
        ConfigError: The results have none of them.
    """
    found = {(row["stage"], row["what"]): row for row in results["measurements"]}
    rows = [found[name] for name in SUMMARY_ROWS if name in found]
    if not rows:
        names = "; ".join(f"{stage}, {what}" for stage, what in SUMMARY_ROWS)
        raise ConfigError(
            f"The results have none of the rows of the summary ({names}). Measure load and train as well."
        )
    return rows


def markdown_table(results: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return rows of results in Markdown, with the machine, versions, commit and date above them."""
    lines = [describe(results) + ".", ""]
    lines += ["| stage | what | images/s | limit | share |", "|---|---|---:|---:|---:|"]
    for row in rows:
        what, limit = row["what"], row["limit"]
        if "accuracy_share" in row["notes"]:
            what += f": accuracy {row['notes']['accuracy_share']:.3f}"
        if row["speedup"]:
            what += f" ({format_number(row['speedup']['median'])} x {row['usual']['what']})"
        held = f"{limit['what']}: {format_value(limit['median'], row['unit'])}" if limit else ""
        share = f"{row['share']['median']:.0%}" if limit else ""
        lines.append(f"| {row['stage']} | {what} | {format_value(row['median'], row['unit'])} | {held} | {share} |")
    return "\n".join(lines) + "\n"


def replace_between(path: Path, begin: str, end: str, table: str) -> bytes:
    """Return the content of a file with the text between two marker comments replaced, all else kept to the byte.

    Raises:
        ConfigError: The file does not have each marker exactly once, in order.
    """
    text = path.read_bytes().decode("utf-8")
    if (text.count(begin), text.count(end)) != (1, 1) or text.index(begin) > text.index(end):
        raise ConfigError(f"{path} must have the lines {begin} and {end} once each; the table is written between them.")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{table}{end}{after}".encode()


def format_value(value: float, unit: str) -> str:
    """Format a number for a column of images/s, with its unit if it has another one."""
    return format_number(value) if unit == "images/s" else f"{format_number(value)} {unit}"


def format_number(value: float) -> str:
    """Format a number with three significant digits, or as an integer from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
