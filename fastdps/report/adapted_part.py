"""The section "Training" of a run that `fastdps adapt` made: what to expect of it, and where its curve is heading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastdps.report.agreement import percent
from fastdps.report.charts import Line, lines
from fastdps.report.page_parts import Figure
from fastdps.report.reading import RunRecord


def adapted_fit(record: RunRecord) -> dict[str, Any] | None:
    """Return how a run of `fastdps adapt` was fitted: the "end" record of its log, with sentences and charts.

    Returns:
        None for a run that `fastdps train` made, or whose log is missing.
    """
    ends = [entry for entry in record.log if entry["event"] == "end" and "elapsed_s" in entry]
    if record.adapted is None or not ends:
        return None
    return {**ends[-1], "sentences": _sentences(record.adapted), "figures": _curve(record.adapted)}


def _sentences(adapted: Mapping[str, Any]) -> list[str]:
    kept = "" if adapted["verdict"] == "adapted" or adapted["forced"] else ", and the base is kept"
    count, base = adapted["judgements"], adapted["base"]
    sentences = [f"Heads are fitted to {count:,} judgements by fastdps adapt, on the base {base}{kept}."]
    if expected := adapted["expected"]:
        fit, unadapted = (
            f"{percent(one['value'])} (95 %: {percent(one['low'])} to {percent(one['high'])})"
            for one in (expected["accuracy"], expected["base"])
        )
        sentences.append(
            f"By cross-validation over images, the fit is expected to agree with {fit} of new votes, and the base with "
            f"{unadapted}."
        )
    if adapted["contradicting"]:
        sentences.append(f"{adapted['contradicting']:,} of the judgements contradict others of the same judge.")
    return sentences


def _curve(adapted: Mapping[str, Any]) -> list[Figure]:
    """Return the expected agreement by number of judgements, beside that of the base; nothing without a curve."""
    points = [(point["judgements"], 100 * point["accuracy"]) for point in adapted["curve"]]
    if expected := adapted["expected"]:
        points.append((adapted["judgements"], 100 * expected["accuracy"]["value"]))
    if len(points) < 2 or not expected:
        return []
    base = 100 * expected["base"]["value"]
    curves = [Line("fit", points), Line("base", [(points[0][0], base), (points[-1][0], base)], dashed=True)]
    description = (
        f"Expected agreement with new votes in percent, by number of judgements: {points[0][1]:.1f} with "
        f"{points[0][0]:.0f}, {points[-1][1]:.1f} with {points[-1][0]:.0f}; the base has {base:.1f}."
    )
    chart = lines(curves, "judgements", "agreement, %", description)
    return [Figure("Expected agreement by number of judgements", chart, [("line-0", "fit"), ("line-1 dashed", "base")])]
