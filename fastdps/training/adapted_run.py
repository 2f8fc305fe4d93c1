"""The run that `fastdps adapt` writes, which `load`, `evaluate`, `score`, `export` and `report` open.

    base, heads --> RUN/metric.safetensors, adapted.json, log.jsonl, config.json

config.json comes last, so an interrupted run is not taken for a finished one.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

from fastdps.contexts.judgements import POOLED
from fastdps.errors import ConfigError
from fastdps.metric.origin import Origin
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_directory import RunDirectory
from fastdps.runtime.files import write_json
from fastdps.training.bases import Base
from fastdps.training.few_shot import FewShotFit
from fastdps.training.recipes import get_recipe

RECIPE = "adapt"


@dataclass(frozen=True)
class AdaptedTo:
    """What a metric was adapted to, for `config.json` and `log.jsonl`.

    Attributes:
        path: Where the judgements are from.
        images: Number of images.
        size: Their side in pixels.
        sha256: A hash of judgements and images.
        source: The entries of a manifest.
        by: The column of the judges, None for the pooled judge alone.
        features_s: Seconds for reading images and computing features.
        elapsed_s: Seconds in all.
    """

    path: str
    images: int
    size: int
    sha256: str
    source: Mapping[str, Any] = field(default_factory=lambda: {"name": "judgements"})
    by: str | None = None
    features_s: float = 0.0
    elapsed_s: float = 0.0


def adapted_metric(base: Base, fit: FewShotFit, data: AdaptedTo) -> PerceptualMetric:
    """Return the metric of a fit: the pooled head, and those of the judges, on the backbone of the base."""
    weights = fit.weights.to(base.metric.weights.device)
    judges = (POOLED, *fit.judges)
    metric = PerceptualMetric(base.metric.backbone, weights, comparison=base.metric.comparison, judges=judges)
    metric.origin = Origin((data.size, data.size), data.sha256, version("fastdps"))
    return metric


def save_adapted(
    out: str | PathLike[str],
    base: Base,
    fit: FewShotFit,
    data: AdaptedTo,
    *,
    forced: bool = False,
    overwrite: bool = False,
) -> RunDirectory:
    """Write an adapted metric as a run.

    Args:
        out: The run directory.
        base: The base.
        fit: The heads.
        data: What they were fitted to.
        forced: The fitted heads are in use, whatever the verdict.
        overwrite: Replace a run that the directory holds. Files that are not of a run stay.

    Returns:
        The run directory.

    Raises:
        ConfigError: The directory holds a run, or is in use.
        FastDPSError: A file cannot be written.
    """
    run, metric = RunDirectory(Path(out)), adapted_metric(base, fit, data)
    run.refuse_foreign_files()
    with run.locked("adapting"):
        if run.holds_run and not overwrite:
            raise ConfigError(f"{run.path} already holds a run. Choose another --out, or pass --overwrite.")
        run.clear()
        config = _config(metric, fit, data)
        metric.save(run.metric, include_backbone=base.includes_backbone)
        write_json(run.adapted, _describe(base, fit, forced=forced))
        run.append_log(_end(fit, data))
        write_json(run.config, config)
    return run


def _config(metric: PerceptualMetric, fit: FewShotFit, data: AdaptedTo) -> dict[str, Any]:
    chosen = {"backbone": metric.backbone.name, "taps": metric.backbone.taps, "comparison": metric.comparison}
    settings = replace(get_recipe("judgements", {**chosen, "by": data.by}), recipe=RECIPE)
    return {
        "config": settings.to_json(),
        "rankings": [],
        "judges": [POOLED, *fit.judges],
        "data": {
            "shards": data.path,
            "validation": None,
            "size": data.size,
            "image_size": [data.size, data.size],
            "samples": data.images,
            "source": dict(data.source),
            "sha256": data.sha256,
            "validation_sha256": None,
        },
        "versions": {name: version(name) for name in ("fastdps", "torch", "kornia", "accelerate")},
        "machine": {"python": platform.python_version(), "platform": platform.platform()},
    }


def _end(fit: FewShotFit, data: AdaptedTo) -> dict[str, Any]:
    return {
        "event": "end",
        "step": 0,
        "processes": 1,
        "images_per_s": data.images / max(data.features_s, 1e-9) if data.features_s else 0.0,
        "triplets_per_s": fit.judgements / max(data.elapsed_s, 1e-9) if data.elapsed_s else 0.0,
        "data_wait_fraction": 0.0,
        "features_s": data.features_s,
        "elapsed_s": data.elapsed_s,
        "images": data.images,
        "triplets": fit.judgements,
        "moments": "memory",
    }


def describe_fit(fit: FewShotFit) -> dict[str, Any]:
    """Return what a fit says, as JSON types: verdict, accuracy to expect, learning curve, forecast."""
    return {
        "prior": fit.prior,
        "strength": _finite(fit.strength),
        "judge_strength": _finite(fit.judge_strength),
        "verdict": fit.verdict,
        "judgements": fit.judgements,
        "contradicting": fit.contradicting,
        "expected": fit.expected and asdict(fit.expected),
        "curve": [asdict(point) for point in fit.curve],
        "forecast": fit.forecast and asdict(fit.forecast),
        "judges": {name: asdict(expected) for name, expected in fit.judge_expected.items()},
        "message": fit.message,
    }


def _describe(base: Base, fit: FewShotFit, *, forced: bool) -> dict[str, Any]:
    """Return the content of `adapted.json`. A strength of null is infinite: the prior itself."""
    context = base.metric.judges or tuple(",".join(ranking) for ranking in base.metric.rankings)
    return {
        "base": base.name,
        "context": context[0] if len(context) == 1 else None,
        "forced": forced,
        **describe_fit(fit),
        "base_weights": base.priors[0].weights.tolist(),
    }


def _finite(strength: float | None) -> float | None:
    return strength if strength is not None and math.isfinite(strength) else None
