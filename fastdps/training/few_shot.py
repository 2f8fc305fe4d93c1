"""A head from few judgements: the convex fit of `fastdps.training.logistic`, drawn to a head of the base.

    judged triplets, kept features --> differences of moments --> folds x priors x strengths in one pass --> weights

Shapes: R judgements, P pairs, C channels of all taps, K heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdps.contexts.judgements import JudgedPairs, fold_masks, image_folds
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.scores import two_afc
from fastdps.training.logistic import Judged, OwnJudgements, Uses, fit_heads, prior_scales
from fastdps.training.pair_moments import MomentBlocks

#: Strengths of the prior that cross-validation compares; "infinite" is the prior itself, scaled.
STRENGTHS = (float("inf"), 3.0, 0.3, 0.03, 0.003)
FOLDS = 5
ITERATIONS = 40
#: Fewest judgements with which a strength is chosen.
LEAST = 8
DEFAULT_STRENGTH = 0.3


@dataclass(frozen=True)
class Prior:
    """Weights that a head is drawn to.

    Attributes:
        name: "base", "mean of the contexts" or "equal weights".
        weights: Channel weights (C,); their scale does not matter.
    """

    name: str
    weights: Tensor


def priors_of(metric: PerceptualMetric) -> tuple[Prior, ...]:
    """Return the priors that a base offers: its own weights, or the mean of its contexts, and equal weights."""
    rows = metric.weights.float()
    rows = rows / rows.mean(dim=1, keepdim=True).clamp_min(1e-12)
    name = "base" if len(rows) == 1 else "mean of the contexts"
    priors = [Prior(name, rows.mean(dim=0))]
    if not torch.allclose(priors[0].weights, torch.ones_like(priors[0].weights), rtol=1e-3):
        priors.append(Prior("equal weights", torch.ones_like(rows[0])))
    return tuple(priors)


@dataclass(frozen=True)
class FewShotFit:
    """A head that was fitted to few judgements.

    Attributes:
        weights: Channel weights (C,), not negative: the sigmoid of d_a - d_b is the probability that b is closer.
        prior: Name of the prior.
        strength: Strength of the prior; infinite is the prior itself, scaled.
        accuracy: Share of the votes of held-out judgements that agree with the fit, in [0, 1]; None without folds.
        base_accuracy: Share of the votes that agree with the first prior, the base.
    """

    weights: Tensor
    prior: str
    strength: float
    accuracy: float | None
    base_accuracy: float


def fit_few(
    judged: JudgedPairs, moments: MomentBlocks, priors: Sequence[Prior], *, folds: int = FOLDS, seed: int = 0
) -> FewShotFit:
    """Fit a head to few judgements.

    Args:
        judged: The judgements, see `judged_pairs`.
        moments: The moments of `judged.pairs`.
        priors: Weights that the head may be drawn to, the base's first.
        folds: Number of folds of the cross-validation.
        seed: Seed of the folds.

    Returns:
        The head.
    """
    data = Judged(judged, moments, OwnJudgements(priors[0].weights.device))
    everything = Uses.of([np.ones(len(judged), bool)], data.votes.device)
    base = priors[0].weights[None] * prior_scales(data, everything, priors[0].weights[None])[:, None]
    rounds = [masks for masks in _rounds(judged, folds, seed) if masks[0].any() and masks[1].any()]
    choice, accuracy = (0, DEFAULT_STRENGTH), None
    if len(judged) >= LEAST and rounds:
        choice, accuracy = _choose(data, rounds, priors)
    prior = priors[choice[0]].weights[None]
    prior = prior * prior_scales(data, everything, prior)[:, None]
    weights = prior
    if np.isfinite(choice[1]):
        strengths = torch.tensor([choice[1]], device=prior.device)
        weights = fit_heads(data, everything, prior, strengths, iterations=ITERATIONS).weights
    return FewShotFit(weights[0], priors[choice[0]].name, choice[1], accuracy, _agreement(data, base, everything))


def _rounds(judged: JudgedPairs, folds: int, seed: int) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    assigned = image_folds(len(judged.ids), folds, seed)
    return [fold_masks(judged, assigned, fold) for fold in range(folds)]


def _choose(
    data: Judged, rounds: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]], priors: Sequence[Prior]
) -> tuple[tuple[int, float], float]:
    """Return the index of the prior, the strength and the held-out accuracy of the best choice."""
    device, folds = data.votes.device, len(rounds)
    settings = [(number, strength) for number in range(len(priors)) for strength in STRENGTHS]
    uses = Uses.of([masks[0] for _ in settings for masks in rounds], device)
    held_out = Uses.of([masks[1] for _ in settings for masks in rounds], device)
    prior = torch.stack([priors[number].weights for number, _ in settings]).repeat_interleave(folds, dim=0)
    prior = prior * prior_scales(data, uses, prior)[:, None]
    strengths = torch.tensor([strength for _, strength in settings], device=device).repeat_interleave(folds)
    finite = torch.where(strengths.isfinite(), strengths, 1e6)
    weights = fit_heads(data, uses, prior, finite, iterations=ITERATIONS).weights
    losses = data.losses(weights, held_out).view(len(settings), folds)
    best = int(losses.mean(dim=1).argmin())
    own = slice(best * folds, (best + 1) * folds)
    return settings[best], _agreement(data, weights[own], Uses.of([masks[1] for masks in rounds], device))


def _agreement(data: Judged, weights: Tensor, uses: Uses) -> float:
    """Return the share of the votes that agree with heads (K, C) on the judgements that they see."""
    d = data.moments.distances(weights)
    row, head = uses.row, uses.head
    agreed = two_afc(d[data.first[row], head], d[data.second[row], head], data.share[row])
    return float((agreed * data.votes[row]).sum() / data.votes[row].sum())
