"""Tables in the terminal: scores, sweeps, rankings of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdps.evaluation.judged_scores import JudgementScores
from fastdps.evaluation.run_scores import HumanAgreement, RunScores, SubsetScores
from fastdps.evaluation.scored_sets import warnings
from fastdps.metric.scores import Interval
from fastdps.report.profile import profile_lines, profile_rows
from fastdps.runtime.console import Column, Styled, TextTable, print_line

#: Number of contexts that are listed as the hardest, and as the easiest.
LISTED = 3


def print_scores(scores: RunScores) -> None:
    """Print the summary, the hardest and easiest contexts, and the accuracy of each pair of distortions."""
    summary = scores.summary
    if summary is None:
        return
    print_line("")
    one = summary.contexts == 1
    improvement = "" if one else f", mean over {summary.contexts:,} contexts; "
    print_line(
        Styled(scores.backbone, "bold"),
        f", {scores.variant}, {scores.recipe}: accuracy on {_images_of(scores)} {summary.baseline_accuracy:.4f} -> ",
        Styled(f"{summary.adapted_accuracy:.4f}", "bold"),
        f" (95 %: {_interval(summary.intervals.adapted, ' to ')})" if summary.intervals else "",
        improvement,
        *(() if one else (Styled(f"{summary.improved_fraction:.1%}", "bold"), " of them improved")),
    )
    by_accuracy = sorted(scores.contexts, key=lambda context: context.adapted_accuracy)
    groups = [("hardest", by_accuracy[:LISTED]), ("easiest", by_accuracy[::-1][:LISTED])]
    if len(by_accuracy) <= 2 * LISTED:
        groups = [("" if one else "hardest first", by_accuracy)]
    headings = ["before", "after", *(["95 %"] if summary.intervals else [])]
    columns = [Column(), Column("ranking", fold=True), *(Column(heading, right=True) for heading in headings)]
    table = TextTable(columns, title="Contexts, least disruptive distortion first")
    for title, rows in groups:
        for number, row in enumerate(rows):
            accuracies = f"{row.baseline_accuracy:.4f}", f"{row.adapted_accuracy:.4f}"
            interval = [_interval(row.intervals.adapted)] if row.intervals else []
            table.add_row(title if number == 0 else "", ", ".join(row.ranking), *accuracies, *interval)
        table.add_section()
    table.print()
    columns = [Column("pair"), Column("before", right=True), Column("after", right=True)]
    table = TextTable(columns, title="Pairs of distortions" if one else "Pairs of distortions, mean over contexts")
    for pair in scores.pairs:
        table.add_row(pair.pair, f"{pair.baseline:.4f}", f"{pair.adapted:.4f}")
    table.print()


def _interval(estimate: Interval, between: str = "-") -> str:
    return f"{estimate.low:.3f}{between}{estimate.high:.3f}"


def print_profile(profile: Mapping[str, Any]) -> None:
    """Print the time of a run by stage, its limit and what to change, from `profile.json`."""
    columns = [Column("stage"), *(Column(heading, right=True) for heading in ("seconds", "share", "ms a step"))]
    table = TextTable(columns, title=f"Time by stage, on {profile['device']}")
    for row in profile_rows(profile):
        each = "" if row["ms_per_step"] is None else f"{row['ms_per_step']:.2f}"
        style = "bold" if row["is_limit"] else None
        table.add_row(row["name"], f"{row['seconds']:.2f}", f"{row['share']:.1%}", each, style=style)
    table.add_section()
    table.add_row("total", f"{sum(profile['seconds'].values()):.2f}", "100.0%", "")
    table.print()
    for line in profile_lines(profile):
        print_line(line)


def _images_of(scores: RunScores) -> str:
    """Return a name of the images that the contexts were scored on."""
    same_as = next((one.same_as for one in scores.sets if one.kind == "contexts"), None)
    return "held-out distortions" if same_as is None else f"distortions of the {same_as} images"


def print_warnings(scores: RunScores, *kinds: str) -> None:
    """Print which of the sets of some kinds the run has seen in training."""
    for text in warnings([one.to_dict() for one in scores.sets], *kinds):
        print_line(Styled("Warning: ", "bold yellow"), text, wrap=False)


def print_agreement(agreement: HumanAgreement) -> None:
    """Print the agreement with people: a row per sub-set, and below each test its averages, if there are any.

    "after" is the mean over contexts.
    """
    headings = ("samples", "human", "before", "after", "worst context")
    columns = [Column("sub-set", fold=True), *(Column(heading, right=True) for heading in headings)]
    table = TextTable(columns, title="Agreement with human judgement")
    tests = (("2AFC", agreement.two_afc, ("distort", "real", "all")), ("JND mAP", agreement.jnd, ("jnd",)))
    for title, subsets, averages in tests:
        for name, scores in subsets.items():
            table.add_row(f"{title} {name}", *_agreement_cells(scores))
        table.add_section()
        for average in averages:
            if mean := agreement.averages[average]:
                name = "mean" if average == "jnd" else average
                table.add_row(f"{title} {name} of {len(mean.of)}", *_agreement_cells(mean), style="bold")
        table.add_section()
    table.print()
    mean = agreement.averages["all"] or agreement.averages["jnd"]
    if mean and mean.unadapted is not None:
        print_line(
            f"With equal weights: pretrained backbone {mean.baseline:.4f}, trained backbone {mean.unadapted:.4f}"
        )


def print_judges(scores: JudgementScores) -> None:
    """Print the agreement with all judges together and with each of them, with 95 % intervals."""
    headings = ("triplets", "before", "after", "95 %", "pooled", "ceiling")
    columns = [Column("judge", fold=True), *(Column(heading, right=True) for heading in headings)]
    table = TextTable(columns, title="Agreement with votes")
    for name, judge in (("all together", scores.pooled), *scores.judges.items()):
        votes = judge.votes
        pooled = "" if votes.pooled is None else f"{votes.pooled.value:.3f}"
        after = (f"{votes.after.value:.3f}", _interval(votes.after))
        cells = (f"{judge.triplets:,}", f"{votes.before.value:.3f}", *after, pooled)
        table.add_row(name, *cells, f"{votes.ceiling:.3f}" if judge.human is not None else "")
        if judge is scores.pooled:
            table.add_section()
    table.print()
    all_judges = scores.pooled
    if majority := all_judges.majority:
        print_line(
            f"Agreement with the majority, without {all_judges.ties:,} ties: {majority.before.value:.3f} -> ",
            Styled(f"{majority.after.value:.3f}", "bold"),
            f" (95 %: {_interval(majority.after, ' to ')}); one person's votes: {all_judges.human or 0:.3f}",
        )
    part = all_judges.majority or all_judges.votes
    if part.unadapted is not None:
        values = f"pretrained backbone {part.before.value:.3f}, trained backbone {part.unadapted.value:.3f}"
        print_line(f"With equal weights: {values}")
    change = all_judges.votes.change
    print_line(
        f"Change of the agreement with votes: {change.value:+.3f} (95 %: {change.low:+.3f} to {change.high:+.3f})"
    )


def _agreement_cells(scores: SubsetScores) -> list[str]:
    human = "" if scores.human is None else f"{scores.human:.4f}"
    after = (scores.baseline, scores.adapted, min(scores.contexts))
    return [f"{scores.samples:,}", human, *(f"{score:.4f}" for score in after)]


def print_sweep(summary: Mapping[str, Any], scores: Mapping[str, RunScores], out: Path) -> None:
    """Print a sweep: a row per case, and the means over all cases with their confidence intervals."""
    headings = ("before", "after", "worst", "improved")
    columns = [Column("case", fold=True), *(Column(heading, right=True) for heading in headings)]
    table = TextTable(columns, title="Cases")
    for name, case in scores.items():
        if case.summary is None:
            continue
        table.add_row(
            name,
            f"{case.summary.baseline_accuracy:.4f}",
            f"{case.summary.adapted_accuracy:.4f}",
            f"{min(context.adapted_accuracy for context in case.contexts):.4f}",
            f"{case.summary.improved_fraction:.1%}",
        )
    table.print()
    for name, value in summary.items():
        if isinstance(value, dict):
            interval = f"{value['low']:.4f} to {value['high']:.4f}"
            print_line(f"{name.replace('_', ' ')}: {value['mean']:.4f} ({summary['confidence']:.0%}: {interval})")
    print_line(f"Table: {out / 'sweep.csv'}, {out / 'sweep.json'}", wrap=False)


def print_ranking(title: str, rows: Sequence[tuple[str, float]], *, of: int, scores: Sequence[str] = ()) -> None:
    """Print images with their distances, nearest first.

    Args:
        title: The title.
        rows: Path and distance of each image.
        of: The number of images that were compared.
        scores: What is known of the metric, a line each.
    """
    print_line(Styled(title, "bold"), wrap=False)
    table = TextTable([Column("rank", right=True), Column("image", fold=True), Column("distance", right=True)])
    for rank, (name, distance) in enumerate(rows, start=1):
        table.add_row(str(rank), name, f"{distance:.5f}")
    table.print()
    if len(rows) < of:
        print_line(f"The nearest {len(rows):,} of {of:,}.")
    for line in scores:
        print_line(f"This metric: {line}")
