"""The section "Agreement with people" of a run that was scored on a judgement set: sentences, charts and examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from fastdps.report.judge_charts import IntervalRow, Mark, calibration, choice, interval_rows, key
from fastdps.report.markup import picture, signed
from fastdps.report.page_parts import Figure
from fastdps.report.reading import RunRecord

#: Number of judges in the chart: all of them up to `MOST`, beyond it the most and the least improved.
MOST, EACH_END = 24, 8
#: Where the ceiling of the votes is higher, hardly any triplet has votes on both sides: then the majority says nothing.
_UNANIMOUS = 0.995
_LEVEL = "95\N{NO-BREAK SPACE}%"
#: Text of the kinds of marks.
_KINDS = {"before": "before adaptation", "pooled": "pooled head", "own": "the judge's own head"}


@dataclass(frozen=True)
class AgreementPart:
    """The section of one run.

    Attributes:
        scores: The scores, `scores.json["judgements"]`.
        majority: Agreement of all judges together with majorities, None where it hardly differs from that with votes.
        sentences: What the scores say.
        is_training_set: The run was adapted to the same judgements.
        judges: Name and scores of each judge, the largest gain first.
        chart: The values of the judges with their intervals.
        hidden: Number of judges that the chart does not show.
        calibration: Predicted against observed agreement, None for a run that was not adapted to judgements.
        examples: Judgements that the metric gets wrong, with their pictures; None if they were not recorded.
        corrected: Judgements that it gets right and the unadapted metric wrong; None if they were not recorded.
    """

    scores: Mapping[str, Any]
    majority: Mapping[str, Any] | None
    sentences: Sequence[str]
    is_training_set: bool
    judges: Sequence[tuple[str, Mapping[str, Any]]]
    chart: Figure
    hidden: int
    calibration: Figure | None
    examples: Sequence[Mapping[str, Any]] | None
    corrected: Sequence[Mapping[str, Any]] | None


def agreement(record: RunRecord) -> AgreementPart | None:
    """Return the section of a run, None before it is scored on a judgement set. Raises `FastDPSError`."""
    scores = record.judgements
    if scores is None:
        return None
    judges = sorted(scores["judges"].items(), key=lambda item: -item[1]["votes"]["change"]["value"])
    own = set((record.judges or [])[1:])
    chart, hidden = _chart(scores["pooled"], judges, own, is_fitted=record.judges is not None)
    return AgreementPart(
        scores,
        majority_of(scores["pooled"]),
        [*overall_sentences(scores["pooled"], has_own_heads=bool(own)), *own_head_sentences(scores["judges"], own)],
        scores["set"]["sha256"] == record.config["data"]["sha256"],
        judges,
        chart,
        hidden,
        _calibration(scores["calibration"], "pooled head" if own else "adapted metric"),
        _examples(record, "examples"),
        _examples(record, "right"),
    )


def overall_sentences(pooled: Mapping[str, Any], *, has_own_heads: bool = False) -> list[str]:
    """Return what the scores of all judges together say.

    Args:
        pooled: The scores.
        has_own_heads: Some judges have a head of their own beside the pooled one.
    """
    votes, majority = pooled["votes"], majority_of(pooled)
    what = "One metric for all judges, the pooled head," if has_own_heads else "The adapted metric"
    sentences = [
        f"{what} agrees with {percent(votes['after']['value'])} of the votes on {pooled['triplets']:,} triplets; "
        f"before adaptation it agreed with {percent(votes['before']['value'])}. {change_sentence(votes['change'])}"
    ]
    if (kept := unadapted_sentence(pooled)) is not None:
        sentences.append(kept)
    if majority is None:
        return sentences
    sentences.append(
        f"People disagree, so no metric can agree with more than {percent(votes['ceiling'])} of these votes."
    )
    sentence = (
        f"Counting each triplet once, it agrees with the majority in {percent(majority['after']['value'])}; before "
        f"adaptation in {percent(majority['before']['value'])}."
    )
    if pooled["human"] is not None:
        sentence += f" A single vote agrees with the majority of its triplet in {percent(pooled['human'])}."
    if pooled["ties"]:
        sentence += f" {pooled['ties']:,} triplets without a majority are left out."
    return [*sentences, sentence]


def unadapted_sentence(pooled: Mapping[str, Any]) -> str | None:
    """Return what training the backbone did to its unadapted metric, None where the backbone was not trained."""
    part = majority_of(pooled) or pooled["votes"]
    if (unadapted := part.get("unadapted")) is None:
        return None
    what = "votes" if part is pooled["votes"] else "majority of votes"
    return (
        f"With equal weights for all channels, the trained backbone agrees with {percent(unadapted['value'])} of the "
        f"{what}, and the pretrained one with {percent(part['before']['value'])}."
    )


def majority_of(scores: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the agreement with majorities, None where they hardly differ from single votes."""
    majority: Mapping[str, Any] | None = scores["majority"]
    return majority if scores["votes"]["ceiling"] < _UNANIMOUS else None


def change_sentence(change: Mapping[str, float]) -> str:
    """Return what a change with its 95 % interval means."""
    value, low, high = (100 * change[name] for name in ("value", "low", "high"))
    if value == low == high == 0:
        return "The agreement did not change."
    if low > 0 or high < 0:
        ends = sorted((abs(low), abs(high)))
        verb, noun = ("gained", "gain") if low > 0 else ("lost", "loss")
        return (
            f"It {verb} {abs(value):.1f} percentage points. With {_LEVEL} confidence the {noun} is between "
            f"{ends[0]:.1f} and {ends[1]:.1f}."
        )
    return (
        f"The change of {signed(value, 1)} percentage points may be chance: with {_LEVEL} confidence it is "
        f"between {signed(low, 1)} and {signed(high, 1)}."
    )


def own_head_sentences(judges: Mapping[str, Mapping[str, Any]], own: set[str]) -> list[str]:
    """Return how the heads of single judges compare with the pooled head, on the judgements of each judge.

    Args:
        judges: Scores by judge.
        own: Names of the judges that have a head.
    """
    gains = [
        100 * (scores["votes"]["after"]["value"] - scores["votes"]["pooled"]["value"])
        for name, scores in judges.items()
        if name in own and scores["votes"]["pooled"]
    ]
    if not gains:
        return []
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    mean = fmean(gains)
    direction = "more" if mean >= 0 else "fewer"
    start = (
        f"A judge's own head agrees with {abs(mean):.1f} percentage points {direction} of the judge's votes than the "
    )
    if len(gains) == 1:
        return [start + "pooled head does, for one judge."]
    low, high = _mean_interval(gains)
    chance = ", which may be chance" if low <= 0 <= high else ""
    return [
        f"{start}pooled head does, in the mean over {len(gains):,} judges ({_LEVEL} interval {signed(low, 1)} "
        f"to {signed(high, 1)}){chance}. It is better for {better:,} of them and worse for {worse:,}."
    ]


def _mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean by Student's distribution."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def percent(share: float) -> str:
    """Return a share as text."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _chart(
    pooled: Mapping[str, Any], judges: Sequence[tuple[str, Mapping[str, Any]]], own: set[str], *, is_fitted: bool
) -> tuple[Figure, int]:
    """Return the chart of all judges together and of single judges, and the number of judges that it does not show."""
    hidden = max(0, len(judges) - 2 * EACH_END) if len(judges) > MOST else 0
    shown = [*judges[:EACH_END], *judges[-EACH_END:]] if hidden else judges
    after = "pooled" if is_fitted else "own"
    rows = [_row("all together", pooled, after, is_separate=bool(judges))]
    rows += [_row(name, scores, "own" if name in own else after) for name, scores in shown]
    kinds = dict.fromkeys(mark.kind for row in rows for mark in row.marks)
    names = _KINDS if own else _KINDS | {after: "adapted"}
    legend: list[tuple[str, str]] = [(key(kind), names[kind]) for kind in _KINDS if kind in kinds]
    if any(row.ceiling is not None for row in rows):
        legend.append((key("ceiling"), "ceiling: the largest possible agreement"))
    gains = f"; {len(judges)} judges, by gain from {judges[0][0]} to {judges[-1][0]}" if judges else ""
    values = [percent(pooled["votes"][name]["value"]) for name in ("before", "after")]
    description = (
        "Agreement with votes in percent, with 95 % intervals. All judges together: "
        f"{values[0]} before, {values[1]} after{gains}"
    )
    gap = (1 + EACH_END, f"{hidden:,} judges not shown") if hidden else None
    title = "Agreement with the votes of each judge" if judges else "Agreement with votes"
    return Figure(title, interval_rows(rows, "agreement with votes, %", description, gap=gap), legend), hidden


def _row(name: str, scores: Mapping[str, Any], after: str, *, is_separate: bool = False) -> IntervalRow:
    votes = scores["votes"]
    values = [("before", votes["before"])]
    if after == "own" and votes["pooled"]:
        values.append(("pooled", votes["pooled"]))
    values.append((after, votes["after"]))
    marks = []
    for kind, interval in values:
        value, low, high = (100 * interval[end] for end in ("value", "low", "high"))
        title = f"{name}, {_KINDS[kind]}: {value:.1f} % (95 %: {low:.1f} to {high:.1f})"
        marks.append(Mark(kind, value, low, high, title))
    ceiling = None if majority_of(scores) is None else 100 * votes["ceiling"]
    return IntervalRow(name, marks, ceiling, is_separate)


def _calibration(bins: Sequence[Mapping[str, float]], what: str) -> Figure | None:
    if not bins:
        return None
    points = [(100 * one["predicted"], 100 * one["observed"], one["votes"]) for one in bins]
    total = sum(votes for *_, votes in points)
    error = sum(abs(predicted - observed) * votes for predicted, observed, votes in points) / max(total, 1e-12)
    description = (
        f"Calibration of the {what} in {len(points)} groups of choices: the predicted probability on the x axis "
        f"and the share of votes that agree on the y axis differ by {error:.1f} percentage points in the mean."
    )
    return Figure(f"Calibration of the {what}; mean error {error:.1f} points", calibration(points, description))


def _examples(record: RunRecord, key: str) -> list[dict[str, Any]] | None:
    """Return the entries of a list in `judged.json` with pictures as data URLs, None without the list."""
    if record.judged is None or key not in record.judged:
        return None

    def with_picture(image: Mapping[str, Any]) -> dict[str, Any]:
        content = record.judged_picture(image["file"])
        return {**image, "picture": None if content is None else picture(content)}

    roles = ("reference", "closer", "farther")
    return [{**example, **{role: with_picture(example[role]) for role in roles}} for example in record.judged[key]]


def fit_of(record: RunRecord) -> dict[str, Any] | None:
    """Return how the heads of a judgement set were fitted: the "end" record of the log with charts; None without it."""
    ends = [entry for entry in record.log if entry["event"] == "end" and "pooled" in entry]
    if record.judges is None or not ends:
        return None
    end = ends[-1]
    fits = (("pooled", "Pooled head", "the unadapted metric"), ("judges", "Heads of judges", "the pooled head"))
    figures = [
        chart
        for name, title, prior in fits
        if end.get(name) and (chart := _choice_chart(title, prior, end[name])) is not None
    ]
    return {**end, "figures": figures}


def _choice_chart(title: str, prior: str, chosen: Mapping[str, Any]) -> Figure | None:
    """Return the held-out loss by strength of the prior; None if the strength was given, or chosen without data."""
    values = [
        (strength_text(strength), float(loss))
        for strength, loss in chosen["held_out_loss"].items()
        if isinstance(loss, int | float) and math.isfinite(loss)
    ]
    if not values:
        return None
    strength = strength_text(chosen["strength"])
    description = (
        f"{title}: held-out loss by strength of the prior, from strong to weak: "
        + ", ".join(f"{name} {loss:.4f}" for name, loss in values)
        + f". Chosen: {strength}."
    )
    chart = choice(values, strength, f"strength of the pull to {prior}", description)
    return Figure(f"{title}: loss on held-out judgements; strength {strength} chosen", chart)


def strength_text(strength: str) -> str:
    """Return a strength as in the log for a reader."""
    return "\N{INFINITY}" if strength == "inf" else strength
