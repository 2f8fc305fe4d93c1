"""Adapt heads to a judgement set: features once per image, moments once per pair, then a convex fit.

judgement set --> pairs --> PairMoments --> pooled head, heads of judges --> RUN/metric.safetensors, log.jsonl
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastdps.contexts.judgements import POOLED, JudgedPairs, image_folds, judged_pairs
from fastdps.loading.loader import ShardLoader
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.precision import Precision
from fastdps.run_directory import RunDirectory
from fastdps.runtime.processes import Processes
from fastdps.shards.judgements import JudgementTable
from fastdps.training.judge_heads import Choice, JudgeHeads, fit_judge_heads
from fastdps.training.logistic import Judged
from fastdps.training.options import MomentLimits
from fastdps.training.pair_moments import PairMoments
from fastdps.training.recipes import TrainConfig
from fastdps.training.triplet_images import TripletImages


def keep_judges(judged: JudgedPairs, judges: Sequence[str]) -> JudgedPairs:
    """Return the judgements with only these judges named; judgements of the others count for the pooled judge."""
    places = {name: place for place, name in enumerate(judges)}
    new = np.array([*(places.get(name, -1) for name in judged.judges), -1], np.int64)  # the last one is for -1
    return JudgedPairs(
        judged.ids,
        judged.pairs,
        judged.images,
        judged.first,
        judged.second,
        judged.votes_a,
        judged.votes_b,
        new[judged.judge],
        tuple(judges),
    )


def rows_of_rank(judged: JudgedPairs, rank: int, processes: int) -> NDArray[np.int64]:
    """Return the judgements of one process. Judgements of one reference stay together, which keeps pairs apart."""
    order = np.argsort(judged.images[:, 0], kind="stable")
    return np.sort(np.array_split(order, processes)[rank])


class JudgedTraining:
    """The training of heads on one judgement set.

    Args:
        config: Settings of the run.
        metric: The unadapted metric.
        processes: The processes that train together.
        run: The run directory.
        limits: Limits of the kept moments.
        precision: Floating-point type of the backbone.
    """

    def __init__(
        self,
        config: TrainConfig,
        metric: PerceptualMetric,
        processes: Processes,
        run: RunDirectory,
        *,
        limits: MomentLimits,
        precision: Precision = "auto",
    ) -> None:
        self._config, self._metric, self._processes, self._run = config, metric, processes, run
        self._limits, self._precision = limits, precision
        self._step = 0

    def fit(
        self, table: JudgementTable, judges: Sequence[str], loader: ShardLoader | TripletImages
    ) -> PerceptualMetric:
        """Fit the pooled head and those of judges, and log how.

        Args:
            table: The judgements.
            judges: The judges that get a head.
            loader: All images of the set, in packed order.

        Returns:
            The adapted metric, the same on every process.

        Raises:
            ShardError: A shard cannot be read.
            TrainingError: The heads are NaN or infinite.
        """
        started_s = time.perf_counter()
        processes = self._processes
        everything = keep_judges(judged_pairs(table), judges)
        own = everything.select(rows_of_rank(everything, processes.process_index, processes.num_processes))
        processes.beat("computes features")
        moments = PairMoments(
            self._metric,
            loader,
            own.ids,
            own.pairs,
            limits=self._limits,
            precision=self._precision,
            progress=processes.is_main_process and processes.process_index == 0,
            beat=lambda images: processes.beat("computes features", images),
        )
        features_s = time.perf_counter() - started_s
        folds = image_folds(len(own.ids), self._config.folds, self._config.seed)
        heads = fit_judge_heads(
            own,
            Judged(own, moments, processes),
            folds,
            processes,
            strength=self._config.prior_strength,
            by_judge=bool(judges),
            report=self._report_iteration,
        )
        elapsed_s = time.perf_counter() - started_s
        self._report_end(everything, moments, heads, features_s, elapsed_s)
        names = (POOLED, *judges)
        return PerceptualMetric(
            self._metric.backbone, heads.weights, comparison=self._metric.comparison, judges=names
        ).to(processes.device)

    def _report_iteration(self, what: str, number: int, objective: float) -> None:
        self._step += 1
        self._processes.beat(f"fits {what}", number)
        self._report({"event": "fit", "what": what, "iteration": number, "loss": objective})

    def _report_end(
        self, judged: JudgedPairs, moments: PairMoments, heads: JudgeHeads, features_s: float, elapsed_s: float
    ) -> None:
        """Log how the heads were fitted, and say it in two lines."""
        images = torch.tensor(float(moments.images), device=self._processes.device)
        features = float(self._processes.reduce(images, reduction="sum"))
        triplets_per_s = heads.passes * len(judged) / max(elapsed_s, 1e-9)
        self._report(
            {
                "event": "end",
                "processes": self._processes.num_processes,
                "images_per_s": features / max(features_s, 1e-9),
                "triplets_per_s": triplets_per_s,
                "data_wait_fraction": 0.0,
                "features_s": features_s,
                "elapsed_s": elapsed_s,
                "images": len(judged.ids),
                "features": features,
                "triplets": len(judged),
                "passes": heads.passes,
                "moments": moments.place,
                "pooled": _choice(heads.pooled),
                "judges": heads.judges and _choice(heads.judges),
            }
        )
        self._processes.notify(
            f"{len(judged):,} judgements of {len(judged.ids):,} images: features and moments {features_s:.1f} s, "
            f"{heads.passes:,} passes {elapsed_s - features_s:.1f} s"
        )
        self._processes.notify(_describe(heads, chosen=self._config.prior_strength is None))

    def _report(self, record: dict[str, Any]) -> None:
        if self._processes.process_index == 0:
            self._run.append_log({"event": record["event"], "step": self._step, **record})
            self._processes.log({k: v for k, v in record.items() if isinstance(v, float)}, self._step)


def _choice(choice: Choice) -> dict[str, Any]:
    """Return a choice as JSON types; JSON has no infinity, so strengths are texts."""
    return {
        "strength": f"{choice.strength:g}",
        "held_out_loss": {f"{strength:g}": loss for strength, loss in choice.losses.items()},
    }


def _describe(heads: JudgeHeads, *, chosen: bool) -> str:
    how = "by cross-validation over images" if heads.pooled.losses else "as given"
    if chosen and not heads.pooled.losses:
        how = "by default: there are too few judgements for cross-validation"
    text = f"pooled head: strength {heads.pooled.strength:g} of the prior, {how}"
    if heads.judges:
        text += f"; heads of {len(heads.weights) - 1} judges: strength {heads.judges.strength:g} of the pooled head"
    return text
