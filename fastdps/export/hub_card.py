"""The model card of a metric on the hub: that of an export, also for several contexts, with metadata for the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastdps.export.card import describe, to_markdown
from fastdps.metric.hub import Score, front_matter
from fastdps.metric.load import ContextLocation
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_directory import RunDirectory

TAGS = ("perceptual-similarity", "image-similarity", "perceptual-loss", "lpips")
_ACCURACIES = ("baseline_accuracy", "adapted_accuracy")


def describe_all(
    metric: PerceptualMetric, places: Sequence[ContextLocation], run: RunDirectory | None
) -> dict[str, Any]:
    """Return the card of a metric that is known before it is written.

    Args:
        metric: The metric, or the first of several with a backbone each.
        places: The contexts.
        run: Its run, None if there is none.

    Returns:
        The card of `describe`. The scores of several contexts are their means, and `contexts` is their number.
    """
    if len(places) == 1:
        return describe(metric, places[0], run) | {"contexts": 1}
    card = describe(metric, None, run) | {"contexts": len(places)}
    scores = run.read_scores() if run and run.config.exists() else None
    if scores is None or card["scores"] is None:
        return card | {"scores": None}
    summary, bapps, judged = scores["summary"] or {}, scores["bapps"], scores.get("judgements")
    means = bapps and {
        test: {
            name: {key: subset[key] for key in ("baseline", "adapted", "human")} for name, subset in bapps[test].items()
        }
        for test in ("2afc", "jnd")
    }
    own = {name: summary.get(name) for name in _ACCURACIES} | {"bapps": means}
    if summary.get("intervals"):
        own["intervals"] = summary["intervals"]
    own["judgements"] = judged and _pooled(judged)
    return card | {"scores": card["scores"] | own}


def _pooled(judgements: Mapping[str, Any]) -> dict[str, Any]:
    listed = {name: judgements["set"][name] for name in ("sha256", "triplets", "images")}
    return {"set": listed, **judgements["pooled"]}


def hub_card(card: Mapping[str, Any], repository: str, licence: str) -> str:
    """Return a finished card as Markdown, with the metadata that the hub reads on top.

    Args:
        card: The card.
        repository: "user/name".
        licence: The identifier of a licence on the hub; "other" refers to the card.
    """
    text = to_markdown(card)
    if card["contexts"] > 1:
        text = text.replace(
            "## Scores\n", f"## Scores\n\nMeans over its {card['contexts']} contexts, which `fastdps.json` lists.\n", 1
        )
    backbones = [name.partition("@")[0].replace("/", "-") for name in card["metric"]["backbone"].split("+")]
    tags = ["fastdps", *TAGS, *backbones]
    return front_matter(repository.partition("/")[2], licence, tags, _scores(card["scores"])) + "\n" + text


def _scores(scores: Mapping[str, Any] | None) -> list[Score]:
    """Return the adapted scores of a card for the metadata."""
    if scores is None:
        return []
    found = []
    if scores["adapted_accuracy"] is not None:
        found.append(Score("held-out distorted images", "accuracy", scores["adapted_accuracy"]))
    for test, subsets in (scores["bapps"] or {}).items():
        found += [Score(f"BAPPS {test} {name}", test, one["adapted"]) for name, one in subsets.items()]
    if judged := scores["judgements"]:
        found.append(Score("human judgements", "agreement with votes", judged["votes"]["after"]["value"]))
    return found
