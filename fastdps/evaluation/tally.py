"""Tally: count how often metrics choose as the contexts demand, on the same distortions of held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdps.contexts.distortions import NAMES, draw_plan, make_views, to_float
from fastdps.contexts.interpolation import Interpolation
from fastdps.contexts.rankings import Ranking, labels, pairs
from fastdps.errors import FastDPSError
from fastdps.evaluation.image_spread import AccuracyIntervals, ImageSpread, agreeing_per_image, squares_of
from fastdps.loading.loader import ShardLoader
from fastdps.loading.spec import Batch
from fastdps.metric.perceptual import PerceptualMetric, all_distances
from fastdps.metric.scores import agreeing_votes, prefers_second
from fastdps.runtime.console import track
from fastdps.runtime.processes import Processes

#: Seed of the held-out distortions, the same for every run so that their scores compare.
EVALUATION_SEED = 0x5EED_E7A1_0000_0001


@dataclass(frozen=True)
class Tally:
    """Counts of choices that agree with the contexts. They are exact, so that equal metrics have equal accuracies.

    Attributes:
        baseline: Agreeing choices of the unadapted metric per pair of distortions and context, (pairs, K) float64;
            a tie counts 0.5.
        adapted: The same counts for the adapted metric.
        votes: 1 where the second distortion of a pair must be closer, else 0, (pairs, K).
        judged: Number of choices that each element of `baseline` and `adapted` was counted over.
        spread: How much images differ, for confidence intervals; None if it was not counted.
    """

    baseline: Tensor
    adapted: Tensor
    votes: Tensor
    judged: int
    spread: ImageSpread | None = None

    def per_context(self) -> tuple[Tensor, Tensor]:
        """Return the baseline and the adapted accuracy of each context, (K,) each."""
        choices = self.judged * len(self.adapted)
        return self.baseline.sum(dim=0) / choices, self.adapted.sum(dim=0) / choices

    def intervals(self) -> list[AccuracyIntervals] | None:
        """Return intervals of the accuracies of each context, and last of their means; None if they are not known."""
        if self.spread is None:
            return None
        return self.spread.intervals(*self.per_context(), len(self.adapted) * self.judged // self.spread.images)

    def per_pair(self) -> tuple[Tensor, Tensor]:
        """Return the baseline and the adapted accuracy per pair of distortions, mean over contexts, (pairs,) each."""
        choices = self.judged * self.adapted.shape[1]
        return self.baseline.sum(dim=1) / choices, self.adapted.sum(dim=1) / choices

    def per_order(self) -> list[dict[str, Any]]:
        """Return the accuracy on each ordered pair of distortions, as in `details.json`.

        A row is the mean over the contexts in which `closer` must be closer than `farther`; orders without a context
        are left out.
        """
        rows = []
        for number, (first, second) in enumerate(pairs(len(NAMES)).tolist()):
            for closer, farther, vote in ((first, second, 0), (second, first, 1)):
                columns = self.votes[number] == vote
                if contexts := int(columns.sum()):
                    row: dict[str, Any] = {"closer": NAMES[closer], "farther": NAMES[farther], "contexts": contexts}
                    for name, counts in (("baseline_accuracy", self.baseline), ("adapted_accuracy", self.adapted)):
                        row[name] = counts[number, columns].sum().item() / (contexts * self.judged)
                    rows.append(row)
        return rows


def evaluation_views(batch: Batch, draw: int, device: torch.device, interpolation: Interpolation) -> Tensor:
    """Return a batch with its held-out distortions of one draw: views (n, 1 + D, 3, H, W), the reference first."""
    plan = draw_plan(batch.ids, seed=EVALUATION_SEED, epoch=draw).to(device)
    with torch.inference_mode():
        return make_views(to_float(batch.images), plan, interpolation)


def tally_choices(
    baseline: PerceptualMetric,
    adapted: Sequence[PerceptualMetric],
    loader: ShardLoader,
    processes: Processes,
    *,
    draws: int,
    interpolation: Interpolation = "nearest",
) -> Tally:
    """Count the choices of metrics over all images of a shard set and all processes.

    Args:
        baseline: The unadapted metric.
        adapted: Metrics with rankings, which together are the K contexts. Metrics that share the backbone of `baseline`
            share its features too.
        loader: The held-out images.
        processes: The processes, each of which reads its part.
        draws: Number of draws of the distortions per image; draw d is epoch d of `EVALUATION_SEED`.
        interpolation: Sampling of the geometric distortions.

    Returns:
        The counts, the same on every process.

    Raises:
        FastDPSError: A metric gives NaN.
    """
    device = baseline.weights.device
    first, second = pairs(len(NAMES)).to(device).unbind(dim=1)
    rankings: list[Ranking] = [ranking for metric in adapted for ranking in metric.rankings]
    votes = labels(rankings, NAMES).double()
    votes_there = votes.to(device)
    second_chosen = torch.zeros(len(first), 1 + len(rankings), dtype=torch.float64, device=device)
    squares = torch.zeros(3, len(rankings) + 1, dtype=torch.float64, device=device)
    for batch in track(loader.epoch(0), total=loader.steps, what="scoring", enabled=processes.is_main_process):
        agreeing = torch.zeros(2, len(batch), len(rankings), dtype=torch.float64, device=device)
        for draw in range(draws):
            d = all_distances(baseline, adapted, evaluation_views(batch, draw, device, interpolation))
            chosen = prefers_second(d[:, first], d[:, second])
            second_chosen += chosen.sum(dim=0, dtype=torch.float64)
            agreeing[0] += agreeing_per_image(chosen[..., :1], votes_there)
            agreeing[1] += agreeing_per_image(chosen[..., 1:], votes_there)
        squares += squares_of(*agreeing)
    second_chosen = processes.reduce(second_chosen, reduction="sum").cpu()
    squares = processes.reduce(squares, reduction="sum").cpu()
    if not second_chosen.isfinite().all():
        raise FastDPSError(
            "the metric gives distances that are NaN or infinite: its training diverged. Train again with a lower "
            "learning rate."
        )
    judged = loader.samples * draws
    return Tally(
        baseline=agreeing_votes(second_chosen[:, :1], votes, of=judged),
        adapted=agreeing_votes(second_chosen[:, 1:], votes, of=judged),
        votes=votes,
        judged=judged,
        spread=ImageSpread(loader.samples, squares),
    )
