"""The model card of an exported metric: its properties, training data, scores and licence.

It is a mapping, written as JSON and as Markdown beside the exported file.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torchvision import models

from fastdps.contexts.judgements import POOLED
from fastdps.errors import FastDPSError
from fastdps.evaluation.scored_sets import warning
from fastdps.export.format import Format
from fastdps.export.write import Verified
from fastdps.metric.image_sizes import smallest_side
from fastdps.metric.kept_scores import changed_since
from fastdps.metric.load import ContextLocation
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.weights import tensors_sha256
from fastdps.run_directory import RunDirectory

CARD_VERSION = 1
_OWN_LICENCE = "fastdps is licensed under Apache-2.0."
#: Where a backbone is from, by the start of its name; all others are torchvision's or registered by users.
_ORIGINS = {
    "timm/": "The architecture {name} comes from timm (Apache-2.0). The page of its weights states their licence, and "
    "the data that they were trained on.",
    "": "The architecture and weights of {name} come from torchvision (BSD-3-Clause), which notes that pretrained "
    "weights may have terms of their own, derived from the data they were trained on. They were trained on ImageNet, "
    "whose terms allow non-commercial research and education.",
    "own": "{name} is not one of fastdps or torchvision: its author knows its terms.",
}
_CHECK = (
    "Check whether your use is permitted. The data that the metric was adapted to may have further terms, which you "
    "must check yourself."
)
#: Characters with a meaning in Markdown or HTML.
_MARKDOWN = frozenset("\\`*_[]<>#!|~&@:$^")
#: Settings of a run that the card lists.
_LISTED_SETTINGS = ("variant", "recipe", "epochs", "judge", "loss", "interpolation", "seed")
#: Properties of the scored sets that the card lists, without their paths for the same reason.
_LISTED_OF_SETS = ("kind", "name", "sha256", "samples", "image_size", "draws", "same_as")
#: Titles of the sets of each kind of scores.
_SET_TITLES = {"contexts": "accuracy", "2afc": "BAPPS 2afc", "jnd": "BAPPS jnd", "judgements": "agreement"}
#: Properties of the training data that the card lists. Paths are not listed: they may contain names of people.
_LISTED_DATA = ("source", "samples", "size", "sha256")


def describe(metric: PerceptualMetric, place: ContextLocation | None, run: RunDirectory | None) -> dict[str, Any]:
    """Return the part of the card that is known before the export.

    Args:
        metric: The metric.
        place: File, and ranking or judge, of its context; None for a backbone.
        run: The run of the metric, None if it was loaded from elsewhere.

    Returns:
        The card as JSON types, without file and verification, see `finish`.

    Raises:
        FastDPSError: A file of the run cannot be read.
    """
    ranking, judge = (place.ranking, place.judge) if place else (None, None)
    size = metric.origin.image_size
    card: dict[str, Any] = {
        "card_version": CARD_VERSION,
        "context": None if ranking is None else list(ranking),
        "judge": judge,
        "metric": {
            "backbone": metric.backbone.name,
            "taps": list(metric.backbone.taps),
            "channels": list(metric.channels),
            "comparison": metric.comparison,
            "backbone_sha256": tensors_sha256(metric.backbone.state_dict()),
            "image_size": size and list(size),
            "smallest_side": smallest_side(metric.backbone.name, metric.backbone.taps),
        },
        "training": None,
        "scores": None,
        "versions": {name: version(name) for name in ("fastdps", "torch")} | {"python": platform.python_version()},
        "licence": licence_of(metric.backbone.name),
    }
    if run is not None and run.config.exists():
        config = run.read_config()
        card["training"] = {name: config["config"].get(name) for name in _LISTED_SETTINGS} | {
            "data": {name: config["data"].get(name) for name in _LISTED_DATA},
            "versions": config["versions"],
        }
        card["scores"] = _scores(run, card["context"], judge)
    return card


def licence_of(backbone: str) -> str:
    """Return what is known about the terms of a metric on a backbone, or on several side by side.

    Example:
        >>> licence_of("timm/resnet50@1,2").split(". ")[1]
        'The architecture timm/resnet50@1,2 comes from timm (Apache-2.0)'
    """
    origins = []
    for name in backbone.split("+"):
        plain = name.partition("@")[0]
        known = plain.startswith("timm/") or plain in models.list_models()
        key = ("timm/" if plain.startswith("timm/") else "") if known else "own"
        origins.append(_ORIGINS[key].format(name=name))
    return " ".join([_OWN_LICENCE, *origins, _CHECK])


def _number_of(run: RunDirectory, context: list[str] | None, judge: str | None) -> int:
    """Return the index of a context in its run. Raises `FastDPSError` if the run does not have it."""
    config = run.read_config()
    wanted, contexts = (context, config["rankings"]) if judge is None else (judge, config.get("judges", []))
    if wanted is None:
        return 0
    if wanted not in contexts:
        name = judge or ",".join(context or [])
        raise FastDPSError(
            f"{run.path} holds the metric of another run: {run.config} does not have the context {name}. Restore it or "
            "train again with --overwrite."
        )
    found: int = contexts.index(wanted)
    return found


def _scores(run: RunDirectory, context: list[str] | None, judge: str | None) -> dict[str, Any] | None:
    """Return the scores of one context, each None if it was not measured; None without scores of this metric.

    Args:
        run: The run.
        context: The ranking, None for judgements.
        judge: The name of the judge, None for other contexts.
    """
    number = _number_of(run, context, judge)
    scores = run.read_scores()
    if scores is None or changed_since(run, scores):
        return None
    row: Mapping[str, Any] = next((row for row in scores["contexts"] if row["ranking"] == context), {})
    bapps = scores["bapps"] and {
        test: {
            name: {"baseline": subset["baseline"], "adapted": subset["contexts"][number], "human": subset["human"]}
            for name, subset in scores["bapps"][test].items()
        }
        for test in ("2afc", "jnd")
    }
    accuracies = {name: row.get(name) for name in ("baseline_accuracy", "adapted_accuracy")}
    if row.get("intervals"):
        accuracies["intervals"] = row["intervals"]
    sets = [{name: one[name] for name in _LISTED_OF_SETS} for one in scores.get("sets", [])]
    return accuracies | {
        "sets": sets,
        "bapps": bapps,
        "judgements": judge and _agreement(scores.get("judgements"), judge),
    }


def _agreement(judgements: Mapping[str, Any] | None, judge: str) -> dict[str, Any] | None:
    """Return the agreement with one judge, or with all for the pooled one; None if it was not measured."""
    if judgements is None:
        return None
    found = judgements["pooled"] if judge == POOLED else judgements["judges"].get(judge)
    listed = {name: judgements["set"][name] for name in ("sha256", "triplets", "images")}
    return found and {"set": listed, **found}


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
        _context_row(card),
        f"| backbone | {metric['backbone']}, taps {taps}, compared by {metric['comparison']} |",
        f"| inputs | {file['inputs']} |",
        f"| verified | {verified['with']}: {verified['image_pairs']} pairs of random images, distances up to "
        f"{verified['largest_distance']:.3g}, largest difference {verified['largest_difference']:.1e} |",
    ]
    if training:
        data = training["data"]
        source = (data["source"] or {}).get("name", "unknown")
        size = f", {data['size']} px" if data["size"] else ""
        how = f", {training['epochs']} epochs" if card["judge"] is None else ""
        lines += [
            f"| adapted | {training['variant']}, recipe {training['recipe']}{how} |",
            f"| data | {source}, {data['samples']:,} samples{size}, sha256 {(data['sha256'] or 'unknown')[:16]} |",
        ]
    else:
        lines.append("| adapted | unknown: exported without a run directory |")
    versions = ", ".join(f"{name} {number}" for name, number in card["versions"].items())
    lines += [f"| exported with | {versions} |", "", "## Use", "", "```python", *file["usage"].splitlines(), "```", ""]
    lines += ["## Scores", "", *_score_lines(scores), "", "## Licence", "", card["licence"], ""]
    return "\n".join(lines)


def _context_row(card: Mapping[str, Any]) -> str:
    if card.get("contexts", 1) > 1:
        return f"| contexts | {card['contexts']} |"
    if card["judge"] is not None:
        return f"| adapted to | judgements of {_judge_text(card['judge'])} |"
    return f"| context, least disruptive first | {', '.join(card['context'] or ['none'])} |"


def _judge_text(judge: str) -> str:
    return "all judges together (pooled)" if judge == POOLED else _escaped(judge)


def _escaped(text: str) -> str:
    """Return a text from data for a table in Markdown, on one line and without a meaning of its characters."""
    line = " ".join(text.split())
    return "".join(f"&#{ord(c)};" if c in _MARKDOWN else c for c in line if c.isprintable())


def _score_lines(scores: Mapping[str, Any] | None) -> list[str]:
    """Return a table of the scores before and after adapting, in Markdown."""
    rows = []
    if scores and scores["adapted_accuracy"] is not None:
        seen = next((one["same_as"] for one in scores.get("sets", []) if one["kind"] == "contexts"), None)
        images = "held-out distortions" if seen is None else f"distortions of the {seen} images"
        rows.append((f"accuracy on {images}", scores["baseline_accuracy"], scores["adapted_accuracy"], None))
    for test, subsets in ((scores and scores["bapps"]) or {}).items():
        rows += [
            (f"BAPPS {test} {name}", found["baseline"], found["adapted"], found["human"])
            for name, found in subsets.items()
        ]
    agreement = (scores and scores["judgements"]) or {}
    for name in ("votes", "majority"):
        if found := agreement.get(name):
            ceiling = None if agreement["human"] is None else found["ceiling"]
            rows.append((f"agreement with {name}", found["before"]["value"], found["after"]["value"], ceiling))
    if not rows:
        return ["Not measured (`fastdps evaluate` measures them)."]
    lines = ["| | before | after | human |", "|---|---:|---:|---:|"]
    for name, before, after, human in rows:
        lines.append(f"| {name} | {before:.4f} | {after:.4f} | {'' if human is None else f'{human:.4f}'} |")
    if found := (scores or {}).get("intervals"):
        change = found["change"]
        lines += [
            "",
            f"The accuracy changed by {change['value']:+.4f}, with a 95 % interval of {change['low']:+.4f} to "
            f"{change['high']:+.4f} over the images.",
        ]
    for one in (scores or {}).get("sets", []):
        if one["same_as"]:
            title = f"The set of the scores {_SET_TITLES.get(one['kind'], '')} {_escaped(one['name'])}".rstrip()
            lines += ["", f"**Warning:** {warning(title, one['same_as'])}"]
    if agreement:
        change, data = agreement["votes"]["change"], agreement["set"]
        interval = f"{change['low']:+.4f} to {change['high']:+.4f}"
        lines += [
            "",
            f"Agreement is measured on {agreement['triplets']:,} triplets of a judgement set, sha256 "
            f"{data['sha256'][:16]}. It changed by {change['value']:+.4f}, with a 95 % interval of {interval}. The "
            "column human has the largest agreement that any metric can reach, where triplets have several votes.",
        ]
    return lines


def paths_beside(path: Path) -> tuple[Path, Path]:
    """Return the paths of the card of an exported file, as Markdown and as JSON."""
    return path.with_name(path.name + ".card.md"), path.with_name(path.name + ".card.json")
