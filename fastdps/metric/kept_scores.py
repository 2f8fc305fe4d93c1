"""Scores that a metric of one context keeps in its file, each with the set that it was measured on.

scores.json of the run, if it was computed for exactly this file --kept_scores--> Origin --> metadata of a saved metric

Training writes the metric before anything is scored, so `metric.safetensors` of a run has none. `fastdps.load` finds
them beside it, and whatever it is saved or pushed to afterwards has them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastdps.contexts.judgements import POOLED
from fastdps.contexts.rankings import Ranking
from fastdps.errors import FastDPSError
from fastdps.metric.metric_file import read_tensors_sha256
from fastdps.run_directory import RunDirectory
from fastdps.runtime.json_files import Maybe, Number, check, parse_json

_SHARE = Number(0, 1)
_SCHEMA = [
    {"kind": str, "name": str, "before": _SHARE, "after": _SHARE, "samples": int, "sha256": str, "same_as": Maybe(str)}
]
_WHAT = {"contexts": "accuracy", "2afc": "BAPPS 2afc", "jnd": "BAPPS jnd", "judgements": "agreement with votes"}
_UNITS = {"contexts": "images", "2afc": "triplets", "jnd": "pairs", "judgements": "triplets"}
_SEEN = {"training": ", which it was trained on", "validation": ", which its epoch was chosen by"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptScore:
    """One score before and after adapting, in [0, 1].

    Attributes:
        kind: What was scored: "contexts", "2afc", "jnd" or "judgements".
        name: Name of a sub-set of BAPPS, "" for others.
        before: Score of the unadapted metric.
        after: Score of this metric.
        samples: Number of images, triplets or pairs.
        sha256: The hash of the content of the set.
        same_as: "training" or "validation" for a set that the training has seen, else None.
    """

    kind: str
    name: str
    before: float
    after: float
    samples: int
    sha256: str
    same_as: str | None = None

    def __str__(self) -> str:
        what = f"{_WHAT.get(self.kind, self.kind)} {self.name}".rstrip()
        where = f"{self.samples:,} {_UNITS.get(self.kind, 'samples')} (sha256 {self.sha256[:12]})"
        return f"{what} {self.before:.3f} before, {self.after:.3f} after on {where}{_SEEN.get(self.same_as or '', '')}"


def scores_to_text(scores: Sequence[KeptScore]) -> str:
    """Return scores as JSON, for the metadata of a file."""
    return json.dumps([asdict(score) for score in scores])


def scores_from_text(text: str) -> tuple[KeptScore, ...]:
    """Return the scores of `scores_to_text`. Raises `ValueError` for another text."""
    content = parse_json(text)
    check(content, _SCHEMA, "scores")
    try:
        return tuple(KeptScore(**one) for one in content)
    except TypeError as error:  # unknown keys
        raise ValueError(f"scores: {error}") from error


def kept_scores(path: Path, ranking: Ranking | None, judge: str | None) -> tuple[KeptScore, ...]:
    """Return the scores of one context of a metric file in a run.

    Args:
        path: The metric file.
        ranking: The context, None for judgements.
        judge: The name of the judge, None for other contexts.

    Returns:
        The scores. None if the file is in no run, was not scored, or differs from the one that was.
    """
    run = RunDirectory.of_metric(path)
    if not run.config.exists() or not run.scores.exists():
        return ()
    try:
        scores, config = run.read_scores() or {}, run.read_config()
    except FastDPSError as error:
        _log.warning("the metric has no scores: %s", error)
        return ()
    scored = scores.get("metrics", {}).get(path.relative_to(run.path).as_posix())
    if scored is None or scored != read_tensors_sha256(path):
        return ()
    contexts: list[Any] = config["rankings"] or config.get("judges", [])
    wanted = list(ranking) if ranking else judge
    return tuple(_scores_of(scores, wanted, contexts.index(wanted) if wanted in contexts else 0))


def changed_since(run: RunDirectory, scores: Mapping[str, Any]) -> bool:
    """Return True if the scores of a run, as `scores.json` has them, are of other metric files than it has now."""
    hashes = scores.get("metrics", {})
    return any(read_tensors_sha256(run.path / name) != digest for name, digest in hashes.items())


def _scores_of(scores: Mapping[str, Any], wanted: list[str] | str | None, number: int) -> Iterator[KeptScore]:
    """Yield the scores of the context that is `number` in its run."""
    bapps, judged = scores["bapps"] or {}, scores.get("judgements")
    for one in scores.get("sets", []):
        kind, name = one["kind"], one["name"]
        before_after = None
        if kind == "contexts":
            rows = (row for row in scores["contexts"] if row["ranking"] == wanted)
            before_after = next(((row["baseline_accuracy"], row["adapted_accuracy"]) for row in rows), None)
        elif kind in bapps and name in bapps[kind]:
            before_after = bapps[kind][name]["baseline"], bapps[kind][name]["contexts"][number]
        elif kind == "judgements" and judged:
            own = judged["judges"].get(wanted) if wanted not in (None, POOLED) else judged["pooled"]
            before_after = own and (own["votes"]["before"]["value"], own["votes"]["after"]["value"])
        if before_after:
            yield KeptScore(kind, name, *before_after, one["samples"], one["sha256"], one["same_as"])
