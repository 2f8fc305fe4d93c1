"""Judgements as differences of moments, and the fit of many heads to parts of them.

    judgements, kept features --> x = m_a - m_b (R, C) --> heads, each of its own judgements and prior --> weights

Shapes: R judgements, C channels of all taps, K heads, S strengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdps.contexts.judgements import JudgedPairs
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.training.answers import Answers
from fastdps.training.dual_newton import Array, mean_square, prior_scale, solve_path
from fastdps.training.kept_features import KeptFeatures
from fastdps.training.logistic import Judged, OwnJudgements, Uses, fit_heads
from fastdps.training.pair_moments import MomentBlocks, MomentMatrix

Mask = NDArray[np.bool_]

#: Most judgements of a head for the solver in as many dimensions; beyond it L-BFGS-B takes over.
MOST_DUAL = 500
#: Iterations of L-BFGS-B for each strength.
ITERATIONS = 60


@dataclass(frozen=True)
class HeadPrior:
    """Weights that a head is drawn to.

    Attributes:
        name: "base", "mean of the contexts" or "equal weights".
        weights: Channel weights (C,); their scale does not matter.
    """

    name: str
    weights: Tensor

    @property
    def array(self) -> Array:
        """The weights as float64."""
        return np.asarray(self.weights.double().cpu().numpy())


def priors_of(metric: PerceptualMetric) -> tuple[HeadPrior, ...]:
    """Return the priors that a base offers: its own weights, or the mean of its contexts, and equal weights."""
    rows = metric.weights.float()
    rows = rows / rows.mean(dim=1, keepdim=True).clamp_min(1e-12)
    priors = [HeadPrior("base" if len(rows) == 1 else "mean of the contexts", rows.mean(dim=0))]
    equal = torch.ones_like(rows[0])
    if not torch.allclose(priors[0].weights, equal, rtol=1e-3):
        priors.append(HeadPrior("equal weights", equal))
    return tuple(priors)


class Differences:
    """Judgements with the differences of their moments.

    Args:
        judged: The judgements.
        x: m_a - m_b of each judgement, float64 (R, C).
    """

    def __init__(self, judged: JudgedPairs, x: Array) -> None:
        self.judged, self.x = judged, x
        self.share, self.votes = judged.share, judged.votes
        self.unit = mean_square(x)

    @classmethod
    def of(cls, features: KeptFeatures, answers: Answers) -> Differences:
        """Return the differences of judgements about kept images."""
        judged = answers.judged()
        return cls.from_moments(judged, features.matrix(judged.ids[judged.pairs]))

    @classmethod
    def from_moments(cls, judged: JudgedPairs, moments: MomentBlocks) -> Differences:
        """Return the differences of judgements from the moments of their pairs."""
        x = np.zeros((len(judged), moments.shape[1]))
        for which, block in moments.blocks():
            values = block.double().cpu().numpy()
            for pair, sign in ((judged.first, 1.0), (judged.second, -1.0)):
                place = np.searchsorted(which, pair)
                inside = np.flatnonzero((place < len(which)) & (which[np.minimum(place, len(which) - 1)] == pair))
                x[inside] += sign * values[place[inside]]
        return cls(judged, x)

    def solve(self, seen: Sequence[Mask], priors: Array, strengths: Sequence[float]) -> Array:
        """Fit heads to the judgements that each of them sees.

        Args:
            seen: A mask (R,) for each head.
            priors: The prior of each head at its scale, (K, C).
            strengths: Strengths, in descending order.

        Returns:
            Weights (S, K, C).
        """
        if max((int(mask.sum()) for mask in seen), default=0) > MOST_DUAL:
            return self._solve_many(seen, priors, strengths)
        found = [
            solve_path(self.x[mask], self.share[mask], self.votes[mask], prior, strengths, self.unit)
            for mask, prior in zip(seen, priors, strict=True)
        ]
        return np.stack(found, axis=1)

    def scaled(self, seen: Sequence[Mask], prior: Array) -> Array:
        """Return a prior (C,) at the scale that explains the judgements that each head sees, (K, C)."""
        logits = self.x @ prior
        scales = [prior_scale(logits[mask], self.share[mask], self.votes[mask]) for mask in seen]
        return np.asarray(scales)[:, None] * prior

    def _solve_many(self, seen: Sequence[Mask], priors: Array, strengths: Sequence[float]) -> Array:
        """As `solve`, by L-BFGS-B for all heads together."""
        rows = len(self.x)
        matrix = torch.from_numpy(np.concatenate([self.x, np.zeros((1, self.x.shape[1]))])).float()
        judged = self.judged
        zero = np.full(rows, rows)
        as_pairs = JudgedPairs(
            judged.ids,
            np.zeros((rows + 1, 2), np.int64),
            judged.images,
            np.arange(rows),
            zero,
            judged.votes_a,
            judged.votes_b,
            judged.judge,
            judged.judges,
        )
        data = Judged(as_pairs, MomentMatrix(matrix), OwnJudgements(matrix.device))
        uses, prior = Uses.of(list(seen), matrix.device), torch.from_numpy(priors).float()
        votes = np.array([self.votes[mask].sum() for mask in seen])
        weights, found = prior, []
        for strength in strengths:
            if math.isfinite(strength):
                relative = strength * self.unit / (np.maximum(votes, 1e-9) * data.curvature.mean)
                given = torch.from_numpy(relative).float()
                weights = fit_heads(data, uses, prior, given, iterations=ITERATIONS, start=weights).weights
            found.append(weights.double().numpy())
        return np.stack(found)
