"""The parts of the page of a run on contexts: their chart and table, pairs of distortions, examples, and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fastdps.report.charts import heat_map, scatter
from fastdps.report.markup import picture, ranking_text, signed
from fastdps.report.page_parts import Figure
from fastdps.report.reading import RunRecord

#: Number of contexts from which on the table has a search and filters.
MANY = 8
_ROLES = ("closer", "farther")


@dataclass(frozen=True)
class ContextsPart:
    """What the page shows of the contexts of a run.

    Attributes:
        rows: Their scores, the lowest accuracy first. "number" is the place of a context in `scores.json`.
        names: Names of the distortions, in alphabetical order.
        has_intervals: All contexts have intervals.
        is_long: There are enough contexts to search in.
        chart: Accuracy before and after, a point per context; None before they are scored.
        heat_maps: Accuracy by pair of distortions: before, after, and the difference.
        reading: A sentence that says how to read them, by the pair with the lowest accuracy; None without them.
        examples: Wrong and corrected choices in the hardest contexts, with pictures as data URLs.
        legend: One image and all its distortions, None if it was not recorded.
    """

    rows: Sequence[Mapping[str, Any]]
    names: Sequence[str]
    has_intervals: bool
    is_long: bool
    chart: Markup | None
    heat_maps: Sequence[Figure]
    reading: str | None
    examples: Sequence[Mapping[str, Any]]
    legend: Mapping[str, Any] | None


def contexts_part(record: RunRecord) -> ContextsPart:
    """Return the parts of a run. Raises `FastDPSError` if `details.json` names a picture outside its directory."""
    numbered = [
        {**row, "number": number} for number, row in enumerate(record.scores["contexts"] if record.scores else [])
    ]
    rows = sorted(numbered, key=lambda row: row["adapted_accuracy"])
    details = record.details
    return ContextsPart(
        rows,
        sorted({name for ranking in record.config["rankings"] for name in ranking}),
        bool(rows) and all(row.get("intervals") for row in rows),
        len(rows) >= MANY,
        _scatter(rows),
        heat_maps(details["pairs"]) if details else [],
        reading(details["pairs"]) if details else None,
        _examples(record),
        _legend(record),
    )


def _scatter(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not rows:
        return None
    points = [(row["baseline_accuracy"], row["adapted_accuracy"], _title(row)) for row in rows]
    better = sum(y > x for x, y, _ in points)
    return scatter(
        points,
        "accuracy before",
        "accuracy after",
        f"Accuracy of {len(points)} contexts, before adaptation on the x axis and after it on the y axis: {better} lie "
        "above the diagonal, which means improved.",
        numbers=[row["number"] for row in rows],
    )


def _title(row: Mapping[str, Any]) -> str:
    return "{}: {baseline_accuracy:.3f} before, {adapted_accuracy:.3f} after".format(
        ranking_text(row["ranking"]), **row
    )


def heat_maps(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Return the accuracy on each pair of distortions before and after adaptation, and the difference."""
    names = list(dict.fromkeys(name for row in rows for name in (row["closer"], row["farther"])))
    values = {(row["closer"], row["farther"]): (row["baseline_accuracy"], row["adapted_accuracy"]) for row in rows}

    def table(value: Any) -> list[list[float | None]]:
        return [[value(*values[a, b]) if (a, b) in values else None for b in names] for a in names]

    what = "for each pair of distortions, one row and one column per distortion"
    return [
        Figure("before", heat_map(names, table(lambda b, _: b), f"Accuracy before, {what}", middle=0.5, span=0.5)),
        Figure("after", heat_map(names, table(lambda _, a: a), f"Accuracy after, {what}", middle=0.5, span=0.5)),
        Figure("difference", heat_map(names, table(lambda b, a: a - b), f"Difference, {what}", middle=0, span=0.6)),
    ]


def reading(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return how to read the heat maps, by the example of the lowest accuracy after adapting; None without rows."""
    if not rows:
        return None
    lowest = min(rows, key=lambda row: row["adapted_accuracy"])
    closer, farther, count = lowest["closer"], lowest["farther"], lowest["contexts"]
    after, change = lowest["adapted_accuracy"], lowest["adapted_accuracy"] - lowest["baseline_accuracy"]
    contexts = "the context that ranks" if count == 1 else f"the {count:,} contexts that rank"
    return (
        f"How to read it: row {closer}, column {farther} stands for {contexts} {closer} as less disruptive than "
        f"{farther}. Shown both versions of an image, the metric finds the {closer} version closer in "
        f"{100 * after:.0f} % of the choices after adapting ({signed(100 * change, 0)} points). Of all pairs these are "
        "the hardest two to tell apart."
    )


def _examples(record: RunRecord) -> list[dict[str, Any]]:
    """Return the hardest contexts of `details.json`, with pictures as data URLs; "right" is None if not recorded."""

    def with_pictures(choice: Mapping[str, Any]) -> dict[str, Any]:
        views = {role: choice[role] | {"picture": data_url(record, choice[role]["file"])} for role in _ROLES}
        return {**choice, "picture": data_url(record, choice["reference"]), **views}

    return [
        {
            **context,
            "wrong": [with_pictures(choice) for choice in context["wrong"]],
            "right": [with_pictures(choice) for choice in context["right"]] if "right" in context else None,
        }
        for context in (record.details["examples"] if record.details else [])
    ]


def _legend(record: RunRecord) -> dict[str, Any] | None:
    legend = record.details.get("legend") if record.details else None
    if legend is None:
        return None
    views = [{**view, "picture": data_url(record, view["file"])} for view in legend["views"]]
    return {**legend, "picture": data_url(record, legend["reference"]), "views": views}


def data_url(record: RunRecord, name: str) -> str | None:
    """Return a picture of `details.json` as a data URL, None if it is missing. Raises `FastDPSError`."""
    content = record.picture(name)
    return None if content is None else picture(content)
