"""The page that compares runs: main scores, curves in common charts, settings that differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastdps.report.agreement import majority_of
from fastdps.report.charts import COLOURS
from fastdps.report.markup import render
from fastdps.report.page import flat, training_curves
from fastdps.report.reading import RunRecord
from fastdps.run_log import Throughput


def render_comparison(records: Sequence[RunRecord]) -> str:
    """Return the HTML page that compares the runs of `records`."""
    names = _names(records)
    settings = [_settings(record) for record in records]
    keys = dict.fromkeys(key for of_run in settings for key in of_run)
    rows = {key: [of_run.get(key, "\N{EN DASH}") for of_run in settings] for key in keys}
    numbers = [main_scores(record) for record in records]
    shown = list(zip(names, records, strict=True))[:COLOURS]
    return render(
        "comparison.html.j2",
        data={"runs": [{"run": name, **scores} for name, scores in zip(names, numbers, strict=True)]},
        names=names,
        numbers=numbers,
        same_contexts=len({_held_out(record) for record in records}) == 1,
        comparable=comparable_scores(records),
        warnings=list(dict.fromkeys(text for record in records for text in record.warnings)),
        missing=[record.evaluate_command for record in records if _is_unscored(record)],
        judged_sets=_judged_sets(names, records),
        judged_alone=_judged_alone(names, records),
        differing={key: values for key, values in rows.items() if len(set(values)) > 1},
        shared={key: values[0] for key, values in rows.items() if len(set(values)) == 1},
        curves=training_curves(shown),
        all_fitted=all(record.judges is not None for record in records),
        without_curves=names[COLOURS:],
    )


def _is_unscored(record: RunRecord) -> bool:
    """Return whether the scores of what a run was adapted to are missing."""
    if record.has_judgement_set:
        return record.judgements is None
    return record.has_contexts and not record.contexts


def _by_set(names: Sequence[str], records: Sequence[RunRecord]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Return the agreement with judges by the hash of the judgement set, and by the name of the run."""
    sets: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, record in zip(names, records, strict=True):
        if record.judgements is not None:
            sets.setdefault(record.judgements["set"]["sha256"], {})[name] = record.judgements
    return sets


def _judged_sets(names: Sequence[str], records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return the judgement sets on which several runs were scored, with the agreement of these runs."""
    return [
        {
            "sha256": sha256,
            "triplets": next(iter(runs.values()))["pooled"]["triplets"],
            "runs": {
                name: {**scores["pooled"], "majority": majority_of(scores["pooled"])} for name, scores in runs.items()
            },
        }
        for sha256, runs in _by_set(names, records).items()
        if len(runs) > 1
    ]


def _judged_alone(names: Sequence[str], records: Sequence[RunRecord]) -> dict[str, str]:
    """Return the runs that were scored on a judgement set of their own, with the hash of the set."""
    return {name: sha256[:12] for sha256, runs in _by_set(names, records).items() if len(runs) == 1 for name in runs}


def _names(records: Sequence[RunRecord]) -> list[str]:
    """Return the names of the directories, or their paths if names repeat."""
    names = [record.name for record in records]
    return names if len(set(names)) == len(names) else [str(record.run.path) for record in records]


def main_scores(record: RunRecord) -> dict[str, Any]:
    """Return the main scores of a run by name, each None if it is not known."""
    summary = record.scores["summary"] if record.scores else None
    average = record.bapps["averages"]["all"] if record.bapps else None
    jnd = record.bapps["averages"]["jnd"] if record.bapps else None
    return {
        "contexts": len(record.config["rankings"]) or None,
        "improved": summary["improved_fraction"] if summary else None,
        "before": summary["baseline_accuracy"] if summary else None,
        "after": summary["adapted_accuracy"] if summary else None,
        "worst": record.contexts[0]["adapted_accuracy"] if record.contexts else None,
        "bapps_before": average["baseline"] if average else None,
        "bapps_after": average["adapted"] if average else None,
        "jnd_after": jnd["adapted"] if jnd else None,
        "images_per_s": Throughput.from_log(record.log).images_per_s,
    }


def _settings(record: RunRecord) -> dict[str, str]:
    """Return the settings, data, versions and machine of a run as text."""
    data, details = record.config["data"], record.details
    return {
        **flat(record.config["config"]),
        "training data": data["shards"],
        "training images": f"{data['samples']:,}",
        "training data, sha256": data["sha256"][:12],
        **({"size": f"{data['size']} px"} if data["size"] else {}),
        **({"scored on, sha256": details["held_out"]["sha256"][:12]} if details else {}),
        **({"draws per image": str(details["held_out"]["draws"])} if details else {}),
        **({"scored with": _scored_with(record)} if details else {}),
        **record.config["versions"],
        **record.config["machine"],
    }


def comparable_scores(records: Sequence[RunRecord]) -> set[str]:
    """Return the columns of main scores that were measured on the same sets in all runs that have them."""
    groups: list[tuple[Callable[[RunRecord], object], tuple[str, ...]]] = [
        (_held_out, ("before", "after", "worst")),
        (lambda record: _sets(record, "2afc"), ("bapps_before", "bapps_after")),
        (lambda record: _sets(record, "jnd"), ("jnd_after",)),
    ]
    found: set[str] = set()
    for key, columns in groups:
        scored = [record for record in records if any(main_scores(record)[column] is not None for column in columns)]
        if len({key(record) for record in scored}) <= 1:
            found |= set(columns)
    return found


def _sets(record: RunRecord, test: str) -> tuple[Any, ...]:
    """Return the sub-sets of a test with their hashes; versions before 0.2 did not record hashes."""
    if hashes := [(one["name"], one["sha256"]) for one in record.sets if one["kind"] == test]:
        return tuple(sorted(hashes))
    return tuple((name, scores["samples"]) for name, scores in (record.bapps or {}).get(test, {}).items())


def _held_out(record: RunRecord) -> tuple[Any, ...]:
    """Return contexts, held-out images, draws and interpolation: scores are comparable if these are equal."""
    held_out = record.details["held_out"] if record.details else {}
    rankings = sorted(tuple(ranking) for ranking in record.config["rankings"])
    return (tuple(rankings), held_out.get("sha256"), held_out.get("draws"), _scored_with(record))


def _scored_with(record: RunRecord) -> str | None:
    """Return the interpolation of the scores; before it was recorded, it was that of the training."""
    if record.details is None:
        return None
    trained_with: str | None = record.config["config"].get("interpolation")
    interpolation: str | None = record.details["held_out"].get("interpolation", trained_with)
    return interpolation
