"""Counting on held-out images how often metrics choose as contexts have it, all on the same distortions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from fastdps.contexts import Ranking, labels, pairs
from fastdps.distortions import NAMES, Interpolation, draw_plan
from fastdps.errors import FastDPSError
from fastdps.extraction import all_distances, make_views, to_float
from fastdps.loading import ShardLoader
from fastdps.metric import PerceptualMetric
from fastdps.report.live import track
from fastdps.scores import agreement, prefers_second

#: Seed of the held-out distortions, the same for every run so that their scores compare.
EVALUATION_SEED = 0x5EED_E7A1_0000_0001


@dataclass(frozen=True)
class Tally:
    """How often the unadapted and the adapted metric chose as each context has it.

    `baseline` and `adapted` count choices per pair of distortions and context, (pairs, K) float64, ties as 0.5; each of
    their elements is out of `judged` choices. Counts are exact, so that equal metrics have equal accuracies.
    """

    baseline: Tensor
    adapted: Tensor
    judged: int

    def per_context(self) -> tuple[Tensor, Tensor]:
        """Baseline and adapted accuracy of each context, (K,) each."""
        choices = self.judged * len(self.adapted)
        return self.baseline.sum(dim=0) / choices, self.adapted.sum(dim=0) / choices

    def per_pair(self) -> tuple[Tensor, Tensor]:
        """Baseline and adapted accuracy on each pair of distortions, mean over contexts, (pairs,) each."""
        choices = self.judged * self.adapted.shape[1]
        return self.baseline.sum(dim=1) / choices, self.adapted.sum(dim=1) / choices


def tally_choices(
    baseline: PerceptualMetric,
    adapted: Sequence[PerceptualMetric],
    loader: ShardLoader,
    accelerator: Accelerator,
    *,
    draws: int,
    interpolation: Interpolation = "nearest",
) -> Tally:
    """Let metrics choose over all images of a shard set and all processes.

    `adapted` are metrics with rankings, which together are the K contexts; those that share the backbone of `baseline`
    share its features too. The distortions of draw d are those of epoch d of `EVALUATION_SEED`.
    """
    device = baseline.weights.device
    first, second = pairs(len(NAMES)).to(device).unbind(dim=1)
    rankings: list[Ranking] = [ranking for metric in adapted for ranking in metric.rankings]
    second_chosen = torch.zeros(len(first), 1 + len(rankings), dtype=torch.float64, device=device)
    for batch in track(loader.epoch(0), total=loader.steps, what="scoring", enabled=accelerator.is_main_process):
        for draw in range(draws):
            plan = draw_plan(batch.ids, seed=EVALUATION_SEED, epoch=draw).to(device)
            with torch.inference_mode():
                views = make_views(to_float(batch.images), plan, interpolation)
            d = all_distances(baseline, adapted, views)
            second_chosen += prefers_second(d[:, first], d[:, second]).sum(dim=0, dtype=torch.float64)
    second_chosen = accelerator.reduce(second_chosen, reduction="sum").cpu()
    if not second_chosen.isfinite().all():
        raise FastDPSError(
            "the metric gives distances that are no numbers: its training has diverged. Train again with a lower "
            "learning rate."
        )
    judged = loader.samples * draws
    votes = labels(rankings, NAMES).double()
    return Tally(
        baseline=agreement(second_chosen[:, :1], votes, of=judged),
        adapted=agreement(second_chosen[:, 1:], votes, of=judged),
        judged=judged,
    )
