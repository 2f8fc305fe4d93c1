"""The model card of an exported metric: its properties, training data, scores and licence.

It is a mapping, written as JSON and as Markdown beside the exported file.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastdps.contexts.judgements import POOLED
from fastdps.errors import FastDPSError
from fastdps.export.format import Format
from fastdps.export.write import Verified
from fastdps.metric.load import ContextLocation
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.weights import tensors_sha256
from fastdps.run_directory import RunDirectory

CARD_VERSION = 1
LICENCE = (
    "fastdps is licensed under Apache-2.0. The architecture and weights of the backbone come from torchvision "
    "(BSD-3-Clause), which notes that pretrained weights may have terms of their own, derived from the data they were "
    "trained on. They were trained on ImageNet, whose terms allow non-commercial research and education. Check whether "
    "your use is permitted. The data that the metric was adapted to may have further terms, which you must check "
    "yourself."
)
#: Settings of a run that the card lists.
_LISTED_SETTINGS = ("variant", "recipe", "epochs", "judge", "loss", "interpolation", "seed")
#: Properties of the training data that the card lists. Paths are not listed: they may contain names of people.
_LISTED_DATA = ("source", "samples", "size", "sha256")


def describe(metric: PerceptualMetric, place: ContextLocation | None, run: RunDirectory | None) -> dict[str, Any]:
    """Return the part of the card that is known before the export.

    Args:
        metric: The metric.
        place: File and ranking of its context, None for a backbone.
        run: The run of the metric, None if it was loaded from elsewhere.

    Returns:
        The card as JSON types, without file and verification, see `finish`.

    Raises:
        FastDPSError: A file of the run cannot be read.
    """
    ranking = place.ranking if place else None
    card: dict[str, Any] = {
        "card_version": CARD_VERSION,
        "context": None if ranking is None else list(ranking),
        "judge": place.judge if place else None,
        "metric": {
            "backbone": metric.backbone.name,
            "taps": list(metric.backbone.taps),
            "channels": list(metric.channels),
            "comparison": metric.comparison,
            "backbone_sha256": tensors_sha256(metric.backbone.state_dict()),
        },
        "training": None,
        "scores": None,
        "versions": {name: version(name) for name in ("fastdps", "torch")} | {"python": platform.python_version()},
        "licence": LICENCE,
    }
    if run is not None and run.config.exists():
        config = run.read_config()
        card["training"] = {name: config["config"].get(name) for name in _LISTED_SETTINGS} | {
            "data": {name: config["data"].get(name) for name in _LISTED_DATA},
            "versions": config["versions"],
        }
        contexts = config["rankings"]
        if card["context"] and card["context"] not in contexts:
            raise FastDPSError(
                f"{run.path} holds the metric of another run: {run.config} does not have the context "
                f"{','.join(card['context'])}. Restore it or train again with --overwrite."
            )
        number = contexts.index(card["context"]) if card["context"] else place.row if place else 0
        card["scores"] = _scores(run, card["context"], card["judge"], number)
    return card


def _scores(run: RunDirectory, context: list[str] | None, judge: str | None, number: int) -> dict[str, Any] | None:
    """Return the scores of one context, each None if it was not measured; None for a run without scores.

    Args:
        run: The run.
        context: The ranking, None for judgements.
        judge: The judge, None for a metric that was not adapted to judgements with names.
        number: Index of the context in the run, which is its index in the scores on human judgement.
    """
    scores = run.read_scores()
    if scores is None:
        return None
    row: Mapping[str, Any] = next((row for row in scores["contexts"] if row["ranking"] == context), {})
    bapps = scores["bapps"] and {
        test: {
            name: {"baseline": subset["baseline"], "adapted": subset["contexts"][number], "human": subset["human"]}
            for name, subset in scores["bapps"][test].items()
        }
        for test in ("2afc", "jnd")
    }
    judged = scores.get("judgements") if judge else None
    own = judged and (judged["pooled"] if judge == POOLED else judged["judges"].get(judge))
    return {
        **{name: row.get(name) for name in ("baseline_accuracy", "adapted_accuracy")},
        "bapps": bapps,
        "judgements": own and {name: own["votes"][name] for name in ("before", "after", "ceiling")},
    }


def finish(
    card: Mapping[str, Any], form: Format, metric: PerceptualMetric, file: str, verified: Verified
) -> dict[str, Any]:
    """Return the card with the exported file and the result of its verification."""
    return {
        **card,
        "file": {"name": file, "format": form.name, "inputs": form.inputs, "usage": form.usage_of(metric, file)},
        "verified": {
            "with": f"{form.library} {version(form.library)}",
            "image_pairs": verified.pairs,
            "largest_difference": verified.largest_difference,
            "largest_distance": verified.largest_distance,
        },
    }


def to_markdown(card: Mapping[str, Any]) -> str:
    """Return the card as Markdown."""
    metric, training, scores, file, verified = (
        card[key] for key in ("metric", "training", "scores", "file", "verified")
    )
    taps = ", ".join(map(str, metric["taps"]))
    lines = [
        f"# {file['name']}",
        "",
        "A deep perceptual similarity metric: the distance between two images, from their features in an ImageNet "
        "network.",
        "",
        "| | |",
        "|---|---|",
        f"| adapted to | judgements of {_cell(card['judge'])} |"
        if card["judge"]
        else f"| context, least disruptive first | {_ranking_text(card['context'])} |",
        f"| backbone | {metric['backbone']}, taps {taps}, compared by {metric['comparison']} |",
        f"| inputs | {file['inputs']} |",
        f"| verified | {verified['with']}: {verified['image_pairs']} pairs of random images, distances up to "
        f"{verified['largest_distance']:.3g}, largest difference {verified['largest_difference']:.1e} |",
    ]
    if training:
        data = training["data"]
        source = (data["source"] or {}).get("name", "unknown")
        size = f", {data['size']} px" if data["size"] else ""
        lines += [
            f"| adapted | {training['variant']}, recipe {training['recipe']}, {training['epochs']} epochs |",
            f"| data | {source}, {data['samples']:,} samples{size}, sha256 {(data['sha256'] or 'unknown')[:16]} |",
        ]
    else:
        lines.append("| adapted | unknown: exported without a run directory |")
    versions = ", ".join(f"{name} {number}" for name, number in card["versions"].items())
    lines += [f"| exported with | {versions} |", "", "## Use", "", "```python", *file["usage"].splitlines(), "```", ""]
    lines += ["## Scores", "", *_score_lines(scores), "", "## Licence", "", card["licence"], ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return text as a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _ranking_text(context: list[str] | None) -> str:
    return ", ".join(context) if context else "none"


def _score_lines(scores: Mapping[str, Any] | None) -> list[str]:
    """Return a table of the scores before and after adapting, in Markdown."""
    rows = []
    if scores and scores["adapted_accuracy"] is not None:
        rows.append(("accuracy on held-out distortions", scores["baseline_accuracy"], scores["adapted_accuracy"], None))
    if judged := scores and scores.get("judgements"):
        values = (judged["before"]["value"], judged["after"]["value"], judged["ceiling"])
        rows.append(("agreement with votes; human: its ceiling", *values))
    for test, subsets in ((scores and scores["bapps"]) or {}).items():
        rows += [
            (f"BAPPS {test} {name}", found["baseline"], found["adapted"], found["human"])
            for name, found in subsets.items()
        ]
    if not rows:
        return ["Not measured (`fastdps evaluate` measures them)."]
    lines = ["| | before | after | human |", "|---|---:|---:|---:|"]
    for name, before, after, human in rows:
        lines.append(f"| {name} | {before:.4f} | {after:.4f} | {'' if human is None else f'{human:.4f}'} |")
    return lines


def paths_beside(path: Path) -> tuple[Path, Path]:
    """Return the paths of the card of an exported file, as Markdown and as JSON."""
    return path.with_name(path.name + ".card.md"), path.with_name(path.name + ".card.json")
