"""Adapt a metric to few judgements in well under a second: heads on a frozen base.

base, judgements --> features once an image --> convex fit, cross-validated --> Adapted: metric, what to expect, RUN
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch

from fastdps.errors import ConfigError
from fastdps.loading.options import LoadOptions
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.load import Context
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_directory import RunDirectory
from fastdps.training.adapted_run import AdaptedTo, adapted_metric, describe_fit, save_adapted
from fastdps.training.bases import Base, open_base
from fastdps.training.expected import Expected, Forecast
from fastdps.training.few_shot import FewShotFit, Verdict, fit_answers
from fastdps.training.judgement_input import Judgements, read_answers
from fastdps.training.kept_features import KeptFeatures
from fastdps.training.options import MomentLimits


@dataclass(frozen=True)
class AdaptOptions:
    """Options of `adapt`.

    Attributes:
        size: Side in pixels to which images are resized. None for the size that the base was adapted to; where it has
            none, for that of a judgement set, or 128.
        device: Where to compute; None for a GPU if there is one.
        seed: Seed of the folds of the cross-validation.
        loading: How shards are read.
        limits: Limits of the kept features.
    """

    size: int | None = None
    device: str | torch.device | None = None
    seed: int = 0
    loading: LoadOptions = field(default_factory=LoadOptions)
    limits: MomentLimits = field(default_factory=MomentLimits)


@dataclass(frozen=True)
class Adapted:
    """An adapted metric, and what to expect of it.

    Attributes:
        base: What it was adapted from.
        fit: The heads, and how they were chosen.
        data: What it was adapted to.
        run: The run directory, None if it was not saved.
    """

    base: Base
    fit: FewShotFit
    data: AdaptedTo
    run: RunDirectory | None = None

    def __fspath__(self) -> str:
        if self.run is None:
            raise ConfigError("the adapted metric was not saved as a run: give `out`, or call `save`.")
        return fspath(self.run.path)

    @property
    def metric(self) -> ImageMetric:
        """The metric of all judges together."""
        return self.of_judge(None)

    def of_judge(self, name: str | None) -> ImageMetric:
        """Return the metric of one judge, or of all together with None.

        Raises:
            ConfigError: The judge has no head.
        """
        heads = adapted_metric(self.base, self.fit, self.data)
        if name is not None and name not in self.fit.judges:
            raise ConfigError(f"there is no head for {name!r}. Judges: {', '.join(self.fit.judges) or 'none'}.")
        row = 0 if name is None else heads.judges.index(name)
        one = PerceptualMetric(
            heads.backbone, heads.weights[[row]], comparison=heads.comparison, judges=[heads.judges[row]]
        )
        one.origin = heads.origin
        return ImageMetric(one)

    @property
    def verdict(self) -> Verdict:
        """What came of it: "adapted", "kept", "contradictory" or "too few"; see `FewShotFit`."""
        return self.fit.verdict

    @property
    def expected(self) -> Expected | None:
        """The accuracy to expect on other images, of the metric and of the base; None with too few judgements."""
        return self.fit.expected

    @property
    def forecast(self) -> Forecast | None:
        """What more judgements are likely to give; None with too few."""
        return self.fit.forecast

    @property
    def message(self) -> str:
        """What to expect, in a few sentences."""
        return self.fit.message

    def save(self, out: str | PathLike[str], *, overwrite: bool = False) -> RunDirectory:
        """Write the metric as a run, see `save_adapted`."""
        forced = self.verdict != "adapted" and torch.equal(self.fit.weights, self.fit.fitted)
        return save_adapted(out, self.base, self.fit, self.data, forced=forced, overwrite=overwrite)

    def to_dict(self) -> dict[str, Any]:
        """Return base, run, verdict, what to expect, learning curve and forecast as JSON types."""
        run = None if self.run is None else str(self.run.path)
        return {"base": self.base.name, "run": run, "images": self.data.images, **describe_fit(self.fit)}


def adapt(
    base: str | PathLike[str] | Base,
    judgements: Judgements,
    out: str | PathLike[str] | None = None,
    *,
    context: Context | None = None,
    by: str | None = None,
    force: bool = False,
    overwrite: bool = False,
    options: AdaptOptions | None = None,
) -> Adapted:
    """Adapt a metric to few judgements: twenty are enough on a shared backbone.

    The head is a logistic regression with non-negative weights, drawn to the base. How strongly, and whether to the
    base's own weights or to equal ones, is chosen by cross-validation over images. A metric that is not expected to
    agree better than the base is not used: the base is kept unless `force` is set.

    Args:
        base: A run directory, a metric file, the name of a backbone, "lpips" for its published heads, or a `Base`.
        judgements: A .csv, .jsonl or .parquet file of judgements, a directory of such files, a judgement set, or a
            list of (ref, a, b, choice). Images are paths, Pillow images or tensors; choice is "a", "b", or the share
            of votes for b. A fifth value names the judge.
        out: Run directory to write; None to write nothing.
        context: The context of the base to start from, see `open_base`.
        by: The column whose value is the judge, or "judge" for the format's own: each judge gets a head, drawn to the
            pooled one. None for the pooled head only.
        force: Use the fitted head even if it is not expected to beat the base.
        overwrite: Replace the run that `out` holds.
        options: See `AdaptOptions`.

    Returns:
        The metric, and what to expect of it.

    Raises:
        ConfigError: The base or a judgement is not valid, or `out` holds a run.
        FastDPSError: A file cannot be read.

    Example:
        >>> adapted = adapt("runs/shared", [("a.jpg", "b.jpg", "c.jpg", "b"), ...])  # doctest: +SKIP
        >>> print(adapted.message)  # doctest: +SKIP
        >>> adapted.metric(x, y)  # doctest: +SKIP
    """
    options, started_s = options or AdaptOptions(), time.perf_counter()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if out is not None and not overwrite and RunDirectory(Path(out)).config.exists():
        raise ConfigError(f"{out} already holds a run. Choose another --out, or pass --overwrite.")
    opened = base if isinstance(base, Base) else open_base(base, context, device=device)
    read = read_answers(judgements, size=options.size or opened.size, by=by, loading=options.loading)
    features = KeptFeatures(opened.metric, read.images, limits=options.limits)
    features_s = time.perf_counter() - started_s
    by_judge = by is not None
    if by_judge and not read.answers.judges:
        raise ConfigError(f"by={by!r} needs judgements with the names of judges, and these have none. Omit it.")
    fit = fit_answers(features, read.answers, opened.priors, by_judge=by_judge, seed=options.seed)
    data = AdaptedTo(
        path=read.path,
        images=len(read.images),
        size=int(read.images.shape[-1]),
        sha256=read.sha256,
        source=read.source,
        by=by,
        features_s=features_s,
        elapsed_s=time.perf_counter() - started_s,
    )
    adapted = Adapted(opened, fit.forced() if force else fit, data)
    if out is None:
        return adapted
    return Adapted(opened, adapted.fit, data, adapted.save(out, overwrite=overwrite))
