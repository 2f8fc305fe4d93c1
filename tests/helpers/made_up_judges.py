"""Generated runs on judgement sets for tests of reports, without training and without torch."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers.made_up_runs import CHANNELS, SETTINGS, speed, write_log, write_metric

SHA256 = "ef" * 32


def interval(value: float, half: float = 0.02) -> dict[str, float]:
    """Return a value with a symmetric interval."""
    return {"value": value, "low": max(-1.0, value - half), "high": min(1.0, value + half)}


def judge_scores(
    before: float, pooled: float, own: float | None = None, *, votes: int = 4, half: float = 0.02
) -> dict[str, Any]:
    """Return the scores of one judge, or of all together without `own`; with one vote there are no majorities."""

    def of(gain: float, ceiling: float) -> dict[str, Any]:
        after = (pooled if own is None else own) + gain
        return {
            "before": interval(before + gain, half),
            "after": interval(after, half),
            "change": interval(after - before - gain, half),
            "pooled": None if own is None else interval(pooled + gain, half),
            "ceiling": ceiling,
        }

    several = votes > 1
    numbers = {"triplets": 300, "images": 90, "ties": 12 if several else 0, "human": 0.83 if several else None}
    return {**numbers, "votes": of(0, 0.85 if several else 1.0), "majority": of(0.05, 1.0) if several else None}


def make_judged_run(
    path: Path,
    judges: Sequence[str] = (),
    *,
    scored: bool = True,
    examples: bool = True,
    votes: int = 4,
    sha256: str = SHA256,
    names: Sequence[str] = ("chrome.jpg", "wood.jpg", "brass.jpg"),
    **settings: Any,
) -> Path:
    """Write a finished run on a judgement set, with a head for each judge beside the pooled one; return `path`.

    `scored` writes scores.json, and `examples` judged.json with one wrong judgement of the images `names`.
    """
    path.mkdir(parents=True)
    heads = ["pooled", *judges]
    by = "person" if judges else None
    config = {
        "config": {**SETTINGS, "recipe": "judgements", "solver": "lbfgs", "by": by, **settings},
        "rankings": [],
        "judges": heads,
        "data": {
            "shards": f"{path.parent}/set/train",
            "validation": None,
            "size": None,
            "samples": 90,
            "source": {"name": "judgements"},
            "sha256": "ab" * 32,
            "validation_sha256": None,
        },
        "versions": {"fastdps": "0.1.0"},
        "machine": {"python": "3.11"},
    }
    (path / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(len(heads))
    weights = random.uniform(0, 1, (len(heads), sum(CHANNELS)))
    write_metric(path / "metric.safetensors", weights, [], judges=json.dumps(heads))
    write_log(path, fit_log(own_heads=bool(judges)))
    if scored:
        scores = _scores(path, judges, votes, sha256)
        of_run = {name: config["config"][name] for name in ("backbone", "variant", "comparison", "recipe")}
        content = {**of_run, "contexts": [], "summary": None, "bapps": None, "judgements": scores}
        (path / "scores.json").write_text(json.dumps({**content, "throughput": speed()}))
        if examples:
            write_judged(path, names, judges[:1], sha256=sha256)
    return path


def _scores(path: Path, judges: Sequence[str], votes: int, sha256: str) -> dict[str, Any]:
    """Return the value of "judgements" in `scores.json`; gains of own heads differ from judge to judge."""
    gains = np.random.default_rng(0).permutation(np.linspace(-0.05, 0.1, len(judges)))
    return {
        "set": {"path": f"{path.parent}/set/val", "sha256": sha256, "triplets": 4560, "images": 90},
        "pooled": judge_scores(0.72, 0.78, votes=votes),
        "judges": {
            name: judge_scores(0.7, 0.75, 0.75 + gain, votes=votes)
            for name, gain in zip(judges, gains.tolist(), strict=True)
        },
        "calibration": [{"predicted": p, "observed": p - 0.02, "votes": 400.0} for p in (0.55, 0.7, 0.9)],
    }


def fit_log(*, own_heads: bool) -> list[dict[str, Any]]:
    """Return the log of a fit."""
    end: dict[str, Any] = {
        "features_s": 3.25,
        "elapsed_s": 12.5,
        "images": 90,
        "triplets": 18241,
        "passes": 355,
        "moments": "memory",
        "pooled": {"strength": "0.1", "held_out_loss": {"inf": 0.66, "1": 0.65, "0.1": 0.64, "0.01": 0.645}},
        "judges": {"strength": "1", "held_out_loss": {"inf": 0.64, "1": 0.61}} if own_heads else None,
    }
    fit = [{"event": "fit", "step": n, "what": "pooled", "iteration": n, "loss": 1 / n} for n in (1, 2, 3)]
    return [*fit, {"event": "end", "step": 3, "processes": 1, **speed(), **end}]


def write_judged(path: Path, names: Sequence[str], judges: Sequence[str], *, sha256: str = SHA256) -> None:
    """Write judged.json with one wrong and one corrected judgement, and their pictures."""
    (path / "judged").mkdir(exist_ok=True)
    images = []
    for sample, name in enumerate(names):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "teal").save(buffer, "PNG")
        (path / "judged" / f"{sample}.png").write_bytes(buffer.getvalue())
        images.append({"sample": sample, "name": name, "file": f"{sample}.png"})
    reference, closer, farther = images
    example = {
        "reference": reference,
        "closer": closer | {"baseline_distance": 1.5, "adapted_distance": 3.5},
        "farther": farther | {"baseline_distance": 2.5, "adapted_distance": 1.25},
        "votes_closer": 3.0,
        "votes_farther": 1.0,
        "judges": list(judges),
        "probability": 0.91,
    }
    content = {
        "format_version": 1,
        "set": {"path": "set/val", "sha256": sha256},
        "least_votes": 3,
        "searched": 3007,
        "wrong": 221,
        "examples": [example],
        "corrected": 57,
        "right": [{**example, "farther": farther | {"baseline_distance": 1.25, "adapted_distance": 4.5}}],
    }
    (path / "judged.json").write_text(json.dumps(content))
