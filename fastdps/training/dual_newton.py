"""The fit of a head to few judgements, solved in as many dimensions as there are judgements.

    minimise over W >= 0:   sum_r v_r CE(W . x_r, share_r) + s k / 2 |W - prior|^2

x_r = m_a - m_b is the difference of the moments of judgement r, k the mean squared difference over the channels, and s
the strength of the prior: it counts as much as s judgements. It is the objective of `fastdps.training.logistic`, whose
unit of strength is the mean loss instead. At the minimum

    W = max(0, prior - X^T u / (s k))   with   u_r = v_r (sigmoid(W . x_r) - share_r)

so R numbers u determine the C weights. They are found by a semismooth Newton method (Qi and Sun 1993), whose linear
systems have R unknowns: with 100 judgements of 1,152 channels it takes a few milliseconds, where L-BFGS-B takes
hundreds. With thousands of judgements L-BFGS-B is faster.

Shapes: R judgements, C channels, S strengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Most steps for one strength, and the sum of the residuals |u - v (sigmoid - share)|, in votes, at which they end.
STEPS, TOLERANCE = 30, 1e-6
#: The least step length of the line search.
LEAST_STEP = 1e-4
#: Bounds of the scale of a prior, in units of the inverse deviation of its differences.
SCALES = (0.05, 100.0)


def mean_square(x: Array) -> float:
    """Return the mean of the squares of differences (R, C), the unit of strengths; above zero."""
    return max(float(np.square(x).mean()) if len(x) else 0.0, float(np.finfo(np.float32).tiny))


def sigmoid(logits: Array) -> Array:
    """Return the logistic function without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


def cross_entropy(logits: Array, share: Array) -> Array:
    """Return CE(logit, share) element by element: 0 where a certain answer is foreseen."""
    return np.asarray(np.logaddexp(0, logits) - share * logits)


def prior_scale(logits: Array, share: Array, votes: Array) -> float:
    """Return the factor on a prior with which it explains judgements best.

    Few judgements may all agree with the prior, and any factor would explain them better than a smaller one. So its
    logarithm has a standard normal prior, around the inverse deviation of the logits.

    Args:
        logits: Differences d_a - d_b of distances by the prior, (R,).
        share: Share of votes that find b closer, (R,).
        votes: Number of votes, (R,).

    Returns:
        A factor above 0, also for a prior that is worse than chance.
    """
    from scipy.optimize import minimize_scalar

    unit = 1 / max(math.sqrt(float((votes * logits**2).sum() / max(votes.sum(), 1e-30))), 1e-30)
    if not np.isfinite(unit) or unit > 1e25 or not len(logits):
        return 1.0

    def loss(log_scale: float) -> float:
        logit = math.exp(log_scale) * unit * logits
        return float((votes * cross_entropy(logit, share)).sum()) + 0.5 * log_scale**2

    found = minimize_scalar(loss, bounds=tuple(map(math.log, SCALES)), method="bounded", options={"xatol": 1e-3})
    return math.exp(float(found.x)) * unit


def solve_path(x: Array, share: Array, votes: Array, prior: Array, strengths: Sequence[float], unit: float) -> Array:
    """Return the weights (S, C) that minimise the objective for each strength.

    Args:
        x: Differences of moments, (R, C).
        share: Share of votes that find b closer, (R,).
        votes: Number of votes, (R,).
        prior: The prior, at its scale, not negative (C,).
        strengths: Strengths of the prior, best in descending order: each starts at the solution of the one before it.
            Infinite gives the prior itself.
        unit: The mean square k that strengths are multiplied by, see `mean_square`.
    """
    u = np.zeros(len(x))
    found = []
    for strength in strengths:
        weights = prior
        if math.isfinite(strength) and len(x):
            weights, u = _solve(x, share, votes, prior, strength * unit, u)
        found.append(weights)
    return np.stack(found)


def _solve(x: Array, share: Array, votes: Array, prior: Array, penalty: float, u: Array) -> tuple[Array, Array]:
    """Return the weights (C,) of one penalty and the numbers u (R,), from a start for these."""

    def at(u: Array) -> tuple[Array, Array, Array, float]:
        """Return weights, probabilities, residuals and the sum of their sizes."""
        weights = np.maximum(0, prior - u @ x / penalty)
        p = sigmoid(x @ weights)
        residual = u - votes * (p - share)
        return weights, p, residual, float(np.abs(residual).sum())

    gram: Array | None = None
    weights, p, residual, size = at(u)
    for _ in range(STEPS):
        if size < TOLERANCE:
            break
        is_free = weights > 0
        if 2 * is_free.sum() > len(is_free):  # the product of the smaller part of the channels is cheaper
            gram = x @ x.T if gram is None else gram
            bound = x[:, ~is_free]
            free_gram = gram - bound @ bound.T
        else:
            free = x[:, is_free]
            free_gram = free @ free.T
        slope = votes * p * (1 - p) / penalty
        step = np.linalg.solve(np.eye(len(u)) + slope[:, None] * free_gram, residual)
        length = 1.0
        while True:
            new = at(u - length * step)
            if new[3] <= (1 - 0.1 * length) * size or length < LEAST_STEP:
                break
            length /= 2
        u = u - length * step
        weights, p, residual, size = new
    return weights, u
