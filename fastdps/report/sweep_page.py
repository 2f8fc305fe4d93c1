"""The page of a sweep: its summary, the scores of all cases beside what varies, and links to their pages.

A sweep is a directory with `cases/NAME`, a run each, and `sweep.json` once all of them are scored (see
`fastdps.evaluation.sweep`). Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

from fastdps.errors import FastDPSError
from fastdps.report.comparison import comparable_scores, main_scores
from fastdps.report.judge_charts import IntervalRow, Mark, interval_rows, key
from fastdps.report.markup import render
from fastdps.report.page import flat
from fastdps.report.page_parts import Figure
from fastdps.report.reading import RunRecord, read_run
from fastdps.run_directory import RunDirectory
from fastdps.runtime.json_files import Maybe, Number, read_object

CASES, SUMMARY, PAGE = "cases", "sweep.json", "report.html"
#: Largest number of cases in the chart; of more the best and the worst are shown, half of it each.
MOST_SHOWN = 24
_MEAN = {"mean": Number(-1, 1), "low": Number(-1, 1), "high": Number(-1, 1)}
_SCHEMA = {
    "summary": {
        "cases": int,
        "contexts": int,
        "improved_fraction": _MEAN,
        "baseline_accuracy": _MEAN,
        "adapted_accuracy": _MEAN,
        "worst_adapted_accuracy": _MEAN,
        "bapps_change?": Maybe(_MEAN),
    }
}
#: Scores of a case that the table by setting averages.
_AVERAGED = ("before", "after", "worst", "bapps_after")


@dataclass(frozen=True)
class SweepRecord:
    """The content of the directory of a sweep.

    Attributes:
        path: The directory.
        cases: The runs that it holds, by name.
        summary: The summary of `sweep.json`; None before all cases are scored.
    """

    path: Path
    cases: Mapping[str, RunRecord]
    summary: Mapping[str, Any] | None


def is_sweep(path: Path) -> bool:
    """Return whether a directory is that of a sweep, and not a run."""
    return not RunDirectory(path).config.exists() and ((path / SUMMARY).is_file() or (path / CASES).is_dir())


def read_sweep(path: Path) -> SweepRecord:
    """Read the directory of a sweep.

    Args:
        path: The directory.

    Returns:
        Its content.

    Raises:
        FastDPSError: It holds no case, or one of its files is damaged.
    """
    found = sorted(case.parent for case in (path / CASES).glob("*/config.json"))
    cases = {case.name: read_run(case) for case in found}
    if not cases:
        raise FastDPSError(f"{path} is a sweep without cases. Run `fastdps sweep --out {path}` with its grid again.")
    content = read_object(path / SUMMARY, _SCHEMA, "Run the same `fastdps sweep` again, which writes it again.")
    return SweepRecord(path, cases, content and content["summary"])


def render_sweep(record: SweepRecord) -> str:
    """Return the page of a sweep; it links to `cases/NAME/report.html`."""
    settings = {name: flat(case.config["config"]) for name, case in record.cases.items()}
    keys = dict.fromkeys(key for of_case in settings.values() for key in of_case)
    values = {key: [of_case.get(key, "\N{EN DASH}") for of_case in settings.values()] for key in keys}
    varied = [key for key in keys if len(set(values[key])) > 1]
    rows = [
        {
            "case": name,
            "address": quote(f"{CASES}/{name}/{PAGE}"),
            "settings": {key: settings[name].get(key, "\N{EN DASH}") for key in varied},
            **main_scores(case),
        }
        for name, case in record.cases.items()
    ]
    rows.sort(key=lambda row: -(row["after"] if row["after"] is not None else -1.0))
    records = list(record.cases.values())
    return render(
        "sweep.html.j2",
        data={"sweep": record.path.resolve().name, "summary": record.summary, "cases": rows},
        name=record.path.resolve().name,
        summary=record.summary,
        rows=rows,
        varied=varied,
        comparable=comparable_scores(records),
        unscored=[case.evaluate_command for case in records if not case.contexts],
        warnings=list(dict.fromkeys(text for case in records for text in case.warnings)),
        chart=_chart(record, rows),
        by_setting={key: _means(key, rows) for key in varied},
        shared={key: values[key][0] for key in keys if key not in varied},
        data_sets=_data_sets(records[0]),
    )


def _means(key: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the means of the scored cases by the values of one setting, the highest accuracy first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["after"] is not None:
            groups.setdefault(row["settings"][key], []).append(row)
    means = []
    for value, of_value in groups.items():
        scores = {name: [row[name] for row in of_value if row[name] is not None] for name in _AVERAGED}
        means.append(
            {
                "value": value,
                "cases": len(of_value),
                **{name: fmean(all_) if all_ else None for name, all_ in scores.items()},
            }
        )
    return sorted(means, key=lambda row: -row["after"])


def _chart(record: SweepRecord, rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Return the accuracy of the cases with intervals, best first; None unless all scores have intervals."""
    scored = [row for row in rows if row["after"] is not None]
    intervals = {row["case"]: _intervals(record.cases[row["case"]]) for row in scored}
    if len(scored) < 2 or not all(intervals.values()):
        return None
    hidden = max(0, len(scored) - MOST_SHOWN)
    half = MOST_SHOWN // 2
    shown = [*scored[:half], *scored[-half:]] if hidden else scored
    lines = [_line(row["case"], row["settings"], intervals[row["case"]]) for row in shown]
    best, worst = (f"{row['case']} with {row['after']:.3f}" for row in (scored[0], scored[-1]))
    description = (
        f"Mean accuracy of {len(scored)} cases before and after adapting, with 95 % intervals over images; the best is "
        f"{best}, the worst {worst}"
    )
    gap = (half, f"{hidden:,} cases not shown") if hidden else None
    legend = [(key("before"), "before adaptation"), (key("own"), "adapted")]
    return Figure("Mean accuracy by case", interval_rows(lines, "mean accuracy, %", description, gap=gap), legend)


def _intervals(case: RunRecord) -> Mapping[str, Any]:
    """Return the intervals of the mean accuracies of a case, empty if they are not known."""
    summary = case.scores["summary"] if case.scores else None
    return (summary or {}).get("intervals") or {}


def _line(name: str, settings: Mapping[str, str], intervals: Mapping[str, Any]) -> IntervalRow:
    marks = []
    for kind, which, text in (("before", "baseline", "before adaptation"), ("own", "adapted", "adapted")):
        value, low, high = (100 * intervals[which][end] for end in ("value", "low", "high"))
        marks.append(Mark(kind, value, low, high, f"{name}, {text}: {value:.1f} % (95 %: {low:.1f} to {high:.1f})"))
    return IntervalRow(", ".join(settings.values()) or name, marks)


def _data_sets(record: RunRecord) -> dict[str, str]:
    """Return the data that all cases share."""
    data = record.config["data"]
    held_out = record.details["held_out"] if record.details else None
    return {
        "training data": data["shards"],
        "training images": f"{data['samples']:,}",
        "validation": data["validation"] or "none",
        "contexts": f"{len(record.config['rankings']):,}",
        **({"scored on": held_out["shards"], "images": f"{held_out['samples']:,}"} if held_out else {}),
    }
