"""The scores of a run as objects, and as `scores.json` holds them.

{"backbone", "variant", "comparison", "recipe",
 "contexts": [{"ranking", "baseline_accuracy", "adapted_accuracy", "intervals"}, ...],
 "summary": {"contexts", "improved_fraction", "baseline_accuracy", "adapted_accuracy", "intervals"} or null,
 "bapps": see `HumanAgreement`, or null,
 "judgements": see `fastdps.evaluation.judged_scores`, or null,
 "throughput": {"images_per_s", "triplets_per_s", "data_wait_fraction"},
 "sets": see `fastdps.evaluation.scored_sets`,
 "metrics": {"metric.safetensors": hash of the tensors of the metric file that was scored}}

"intervals" is {"baseline", "adapted", "change"}, each {"value", "low", "high"}: 95 % intervals over the held-out images
(see `fastdps.evaluation.image_spread`). Versions before 0.2 did not write it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import Ranking
from fastdps.contexts.rankings import pairs as all_pairs
from fastdps.errors import FastDPSError
from fastdps.evaluation.image_spread import AccuracyIntervals
from fastdps.evaluation.judged_scores import JudgementScores
from fastdps.evaluation.scored_sets import ScoredSet
from fastdps.evaluation.tally import Tally
from fastdps.metric.scores import improved
from fastdps.run_directory import RunDirectory
from fastdps.run_log import Throughput
from fastdps.training.recipes import TrainConfig


@dataclass(frozen=True)
class ContextScore:
    """Accuracy in one context on held-out distortions, before and after adapting.

    Attributes:
        ranking: The context, least disruptive distortion first.
        baseline_accuracy: Accuracy of the unadapted metric, in [0, 1].
        adapted_accuracy: Accuracy of the adapted metric on the same draws.
        intervals: 95 % intervals over images, None if they are not known.
    """

    ranking: Ranking
    baseline_accuracy: float
    adapted_accuracy: float
    intervals: AccuracyIntervals | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the score as JSON types."""
        return _without_unknown_intervals({**asdict(self), "ranking": list(self.ranking)})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ContextScore:
        """Return the score of `to_dict`."""
        return cls(**{**_with_intervals(content), "ranking": tuple(content["ranking"])})


@dataclass(frozen=True)
class ScoreSummary:
    """Means over the contexts of a run.

    Attributes:
        contexts: Number of contexts.
        improved_fraction: Share of contexts whose adapted accuracy is strictly above the baseline's.
        baseline_accuracy: Mean accuracy of the unadapted metric.
        adapted_accuracy: Mean accuracy of the adapted metric.
        intervals: 95 % intervals of the means over images, None if they are not known.
    """

    contexts: int
    improved_fraction: float
    baseline_accuracy: float
    adapted_accuracy: float
    intervals: AccuracyIntervals | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON types."""
        return _without_unknown_intervals(asdict(self))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ScoreSummary:
        """Return the summary of `to_dict`."""
        return cls(**_with_intervals(content))


@dataclass(frozen=True)
class SubsetScores:
    """Agreement with people on one sub-set, or the mean over several; scores are fractions in [0, 1].

    Attributes:
        samples: Number of triplets or pairs.
        human: Human ceiling, None for JND.
        baseline: Score of the unadapted metric.
        adapted: Mean score over contexts.
        change: `adapted - baseline`.
        contexts: Score of each context.
        of: Names of the sub-sets that a mean is over, empty for a single sub-set.
        unadapted: Score of the run's trained backbone with equal weights; None for a frozen backbone, where that is the
            baseline, and for a backbone per context.
    """

    samples: int
    human: float | None
    baseline: float
    adapted: float
    change: float
    contexts: tuple[float, ...]
    of: tuple[str, ...] = ()
    unadapted: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON types."""
        content = {**asdict(self), "contexts": list(self.contexts), "of": list(self.of)}
        absent = {"of": not self.of, "unadapted": self.unadapted is None}
        return {key: value for key, value in content.items() if not absent.get(key)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SubsetScores:
        """Return the scores of `to_dict`."""
        lists = {key: tuple(content.get(key, ())) for key in ("contexts", "of")}
        return cls(**{**content, **lists})


@dataclass(frozen=True)
class HumanAgreement:
    """Agreement with people on BAPPS, or on other sets of judged triplets and pairs.

    Attributes:
        two_afc: Two-alternative forced choice by sub-set; "2afc" in `scores.json`.
        jnd: Just noticeable differences (mean average precision) by sub-set.
        averages: Means over sub-sets: "distort", "real" and "all" of 2AFC, and "jnd". None where a sub-set is missing.
    """

    two_afc: Mapping[str, SubsetScores]
    jnd: Mapping[str, SubsetScores]
    averages: Mapping[str, SubsetScores | None]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON types."""
        return {
            "2afc": {name: scores.to_dict() for name, scores in self.two_afc.items()},
            "jnd": {name: scores.to_dict() for name, scores in self.jnd.items()},
            "averages": {name: scores and scores.to_dict() for name, scores in self.averages.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> HumanAgreement:
        """Return the scores of `to_dict`."""
        parts: list[dict[str, Any]] = [
            {name: scores and SubsetScores.from_dict(scores) for name, scores in content[key].items()}
            for key in ("2afc", "jnd", "averages")
        ]
        return cls(*parts)


@dataclass(frozen=True)
class PairAccuracy:
    """Accuracy on one pair of distortions, mean over contexts; `pair` names both."""

    pair: str
    baseline: float
    adapted: float


@dataclass(frozen=True)
class RunScores:
    """All scores of a run, as `fastdps.evaluate` returns them.

    Attributes:
        backbone: Name of the backbone.
        variant: What was trained.
        comparison: How features are compared.
        recipe: Name of the recipe.
        throughput: Training speed.
        contexts: Scores of the contexts, in the order of the run; empty before they are scored.
        summary: Means over contexts, None before they are scored.
        bapps: Agreement with people on BAPPS, None before it is scored.
        judgements: Agreement with the judges of a judgement set, None before it is scored.
        sets: The sets that were scored on.
        metrics: The hash of the tensors of each metric file that was scored, by its path in the run; empty if other
            files were scored before, or an earlier version scored.
        pairs: Accuracy per pair of distortions of the last call of `fastdps.evaluate`; not part of `scores.json`.
    """

    backbone: str
    variant: str
    comparison: str
    recipe: str
    throughput: Throughput
    contexts: tuple[ContextScore, ...] = ()
    summary: ScoreSummary | None = None
    bapps: HumanAgreement | None = None
    judgements: JudgementScores | None = None
    sets: tuple[ScoredSet, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    pairs: tuple[PairAccuracy, ...] = field(default=(), compare=False)

    @classmethod
    def unscored(cls, config: TrainConfig, run: RunDirectory) -> RunScores:
        """Return the scores of a run that has not been scored."""
        throughput = Throughput.from_log(run.read_log())
        return cls(config.backbone, config.variant, config.comparison, config.recipe, throughput)

    def with_contexts(self, rankings: Sequence[Ranking], tally: Tally) -> RunScores:
        """Return a copy with the scores of the contexts of a tally."""
        baseline, adapted = tally.per_context()
        unknown: list[AccuracyIntervals | None] = [None] * (len(rankings) + 1)
        *intervals, of_means = tally.intervals() or unknown
        rows = zip(rankings, baseline.tolist(), adapted.tolist(), intervals, strict=True)
        names = [f"{NAMES[i]}, {NAMES[j]}" for i, j in all_pairs(len(NAMES)).tolist()]
        pairs = zip(names, *(accuracy.tolist() for accuracy in tally.per_pair()), strict=True)
        summary = ScoreSummary(
            contexts=len(rankings),
            improved_fraction=improved(baseline, adapted).double().mean().item(),
            baseline_accuracy=baseline.mean().item(),
            adapted_accuracy=adapted.mean().item(),
            intervals=of_means,
        )
        return replace(
            self,
            contexts=tuple(ContextScore(*row) for row in rows),
            summary=summary,
            pairs=tuple(PairAccuracy(*row) for row in pairs),
        )

    def with_sets(self, sets: Sequence[ScoredSet]) -> RunScores:
        """Return a copy with sets in place of those of the same kinds; sub-sets of BAPPS are scored together."""
        kinds = {one.kind for one in sets}
        kinds |= {"2afc", "jnd"} if kinds & {"2afc", "jnd"} else set()
        return replace(self, sets=(*(one for one in self.sets if one.kind not in kinds), *sets))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `scores.json`."""
        return {
            "backbone": self.backbone,
            "variant": self.variant,
            "comparison": self.comparison,
            "recipe": self.recipe,
            "contexts": [context.to_dict() for context in self.contexts],
            "summary": self.summary and self.summary.to_dict(),
            "bapps": self.bapps and self.bapps.to_dict(),
            "judgements": self.judgements and self.judgements.to_dict(),
            "throughput": self.throughput.to_dict(),
            "sets": [one.to_dict() for one in self.sets],
            "metrics": dict(self.metrics),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunScores:
        """Return the scores of `to_dict`. Raises `KeyError`, `TypeError` or `ValueError` for other content."""
        contexts = tuple(ContextScore.from_dict(row) for row in content["contexts"])
        summary = content["summary"] and ScoreSummary.from_dict(content["summary"])
        bapps = content["bapps"] and HumanAgreement.from_dict(content["bapps"])
        judgements = content.get("judgements") and JudgementScores.from_dict(content["judgements"])
        names = {key: content[key] for key in ("backbone", "variant", "comparison", "recipe")}
        return cls(
            **names,
            throughput=Throughput(**content["throughput"]),
            contexts=contexts,
            summary=summary,
            bapps=bapps,
            judgements=judgements,
            sets=tuple(ScoredSet.from_dict(one) for one in content.get("sets", ())),
            metrics=content.get("metrics", {}),
        )


def _without_unknown_intervals(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "intervals" or value is not None}


def _with_intervals(content: Mapping[str, Any]) -> dict[str, Any]:
    found = content.get("intervals")
    return {**content, "intervals": found and AccuracyIntervals.from_dict(found)}


def read_scores(run: RunDirectory) -> RunScores | None:
    """Read the scores of a run; None if it has none. Raises `FastDPSError` for a damaged file."""
    content = run.read_scores()
    try:
        return None if content is None else RunScores.from_dict(content)
    except TypeError as error:  # unknown keys
        raise FastDPSError(
            f"{run.scores} cannot be read as scores: {error}. Remove it and run `fastdps evaluate` again."
        ) from error
