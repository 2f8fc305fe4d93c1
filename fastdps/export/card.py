"""The model card of an exported metric: what it is, what it was made from, how good it is, what may be done with it.

It is a mapping, written as JSON and as Markdown beside the exported file.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastdps.errors import FastDPSError
from fastdps.export.format import Format
from fastdps.export.write import Verified
from fastdps.metric.load import ContextLocation
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.weights import tensors_sha256
from fastdps.run_directory import RunDirectory

CARD_VERSION = 1
LICENCE = (
    "fastdps has the licence Apache-2.0. The backbone's architecture and weights come from torchvision (BSD-3-Clause), "
    "which says of its pretrained weights that they may have terms of their own, from the data they were trained on. "
    "They were trained on ImageNet, whose terms allow research and education that is not commercial. Find out whether "
    "your use is permitted. Whether the data that a metric was adapted to has terms is for you to know."
)
#: Settings of a run that the card lists.
_LISTED_SETTINGS = ("variant", "recipe", "epochs", "judge", "loss", "interpolation", "seed")
#: Properties of the training data that the card lists. Paths are not listed: they may contain names of people.
_LISTED_DATA = ("source", "samples", "size", "sha256")


def describe(metric: PerceptualMetric, place: ContextLocation | None, run: RunDirectory | None) -> dict[str, Any]:
    """What is known of a metric before it is exported; `place` and `run` are None where there are none.

    Raises `FastDPSError` for a run's files that cannot be read.
    """
    ranking = place.ranking if place else None
    card: dict[str, Any] = {
        "card_version": CARD_VERSION,
        "context": None if ranking is None else list(ranking),
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
        card["scores"] = _scores(run, card["context"], contexts.index(card["context"]) if card["context"] else 0)
    return card


def _scores(run: RunDirectory, context: list[str] | None, number: int) -> dict[str, Any] | None:
    """One context's accuracies on held-out images, and its agreement with people, as far as they were measured.

    `number` is the context's place among those of the run, in whose order agreement is kept.
    """
    if not run.scores.exists():
        return None
    try:
        scores = json.loads(run.scores.read_text(encoding="utf-8"))
        row: Mapping[str, Any] = next((row for row in scores["contexts"] if row["ranking"] == context), {})
        bapps = scores["bapps"] and {
            test: {
                name: {"baseline": subset["baseline"], "adapted": subset["contexts"][number], "human": subset["human"]}
                for name, subset in scores["bapps"][test].items()
            }
            for test in ("2afc", "jnd")
        }
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FastDPSError(f"{run.scores} is not whole: {error!r}. Run `fastdps evaluate` again.") from error
    return {name: row.get(name) for name in ("baseline_accuracy", "adapted_accuracy")} | {"bapps": bapps}


def finish(
    card: Mapping[str, Any], form: Format, metric: PerceptualMetric, file: str, verified: Verified
) -> dict[str, Any]:
    """The card with what the export has found out."""
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
    """The card for people."""
    metric, training, scores, file, verified = (
        card[key] for key in ("metric", "training", "scores", "file", "verified")
    )
    taps = ", ".join(map(str, metric["taps"]))
    lines = [
        f"# {file['name']}",
        "",
        "A deep perceptual similarity metric: the distance of two images by their features in an ImageNet network.",
        "",
        "| | |",
        "|---|---|",
        f"| context, least disruptive first | {_or_none(card['context'])} |",
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
        lines.append("| adapted | not known: this was exported without a run |")
    versions = ", ".join(f"{name} {number}" for name, number in card["versions"].items())
    lines += [f"| exported with | {versions} |", "", "## Use", "", "```python", *file["usage"].splitlines(), "```", ""]
    lines += ["## Scores", "", *_score_lines(scores), "", "## Licence", "", card["licence"], ""]
    return "\n".join(lines)


def _or_none(context: list[str] | None) -> str:
    return ", ".join(context) if context else "none"


def _score_lines(scores: Mapping[str, Any] | None) -> list[str]:
    """A table of what was measured, before adapting and after."""
    rows = []
    if scores and scores["adapted_accuracy"] is not None:
        rows.append(("accuracy on held-out distortions", scores["baseline_accuracy"], scores["adapted_accuracy"], None))
    for test, subsets in ((scores and scores["bapps"]) or {}).items():
        rows += [
            (f"BAPPS {test} {name}", found["baseline"], found["adapted"], found["human"])
            for name, found in subsets.items()
        ]
    if not rows:
        return ["None were measured (`fastdps evaluate`)."]
    lines = ["| | before | after | human |", "|---|---:|---:|---:|"]
    for name, before, after, human in rows:
        lines.append(f"| {name} | {before:.4f} | {after:.4f} | {'' if human is None else f'{human:.4f}'} |")
    return lines


def paths_beside(path: Path) -> tuple[Path, Path]:
    """Where the card of an exported file is: as Markdown and as JSON."""
    return path.with_name(path.name + ".card.md"), path.with_name(path.name + ".card.json")
