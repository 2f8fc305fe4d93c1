"""Fit heads to judgements by logistic regression with non-negative weights: a convex problem.

    minimise over W_k >= 0:   sum_r v_r CE(W_k . (m_a - m_b), share_r) / sum_r v_r  +  s_k / 2  c |W_k - prior_k|^2

m_a and m_b are the moments of the pairs (ref, a) and (ref, b) of judgement r, share_r is the share of its v_r votes
that find b closer, CE the binary cross-entropy. So W_k . m is a distance, and the sigmoid of d_a - d_b the probability
that b is closer. The strength s_k of the prior is measured in units of the mean curvature c of the data.

Heads are independent problems, solved together: one matrix product serves all of them. Each head sees some of the
judgements: those of its judge, or those of a round of cross-validation.
Solver: L-BFGS-B (Byrd et al. 1995) of scipy. Shapes: P pairs, R judgements, C channels, K heads, N uses of a judgement
by a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fastdps.contexts.judgements import JudgedPairs
from fastdps.training.pair_moments import MomentBlocks

#: Largest element of the projected gradient at which the solver stops. The decrease of the objective does not serve: it
#: is small in the first step from the solution for another strength.
TOLERANCE = 1e-6
#: Pairs of vectors by which L-BFGS approximates the curvature.
MEMORY = 10
#: The least scale of a prior, in units of the inverse deviation of the unadapted distances.
LEAST_SCALE = 0.05
#: Iterations to find the scale of the unadapted metric, a problem of one dimension.
SCALE_ITERATIONS = 50


class Reducer(Protocol):
    """What the fit asks of the processes that share the judgements."""

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        ...

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        """Return the sum of a tensor over all processes."""
        ...


@dataclass(frozen=True)
class OwnJudgements:
    """A `Reducer` for a process that has all judgements itself."""

    device: torch.device

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:  # noqa: ARG002, the interface of Reducer
        """Return the tensor as it is."""
        return tensor


@dataclass(frozen=True)
class Uses:
    """The judgements that each head sees.

    Attributes:
        row: Index of the judgement, int64 (N,).
        head: Index of the head, int64 (N,).
        heads: Number of heads, K.
    """

    row: Tensor
    head: Tensor
    heads: int

    @classmethod
    def of(cls, masks: list[NDArray[np.bool_]], device: torch.device) -> Uses:
        """Return the uses of heads that each see the judgements of a mask (R,)."""
        rows = [np.flatnonzero(mask) for mask in masks]
        heads = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        return cls(torch.from_numpy(np.concatenate(rows)).to(device), torch.from_numpy(heads).to(device), len(rows))


@dataclass(frozen=True)
class Curvature:
    """Statistics of the moments, by which the problem is scaled.

    Attributes:
        deviation: Standard deviation of each channel over the judged differences, about, (C,).
        mean: Mean squared deviation over the channels: the unit of strengths.
    """

    deviation: Tensor
    mean: float


def curvature_of(moments: MomentBlocks, processes: Reducer) -> Curvature:
    """Return the statistics of the moments of all processes."""
    sums = torch.zeros(3, moments.shape[1], dtype=torch.float64, device=processes.device)
    for which, block in moments.blocks():
        double = block.double()
        sums += torch.stack([double.sum(dim=0), double.square().sum(dim=0), torch.full_like(sums[0], len(which))])
    total, squares, count = processes.reduce(sums, reduction="sum")
    variance = 2 * (squares / count - (total / count).square()).clamp_min(0)  # of the difference of two pairs
    mean = max(float(variance.mean()), torch.finfo(torch.float32).tiny)
    return Curvature((variance + 1e-4 * mean).sqrt().float(), mean)


class Judged:
    """The judgements of this process, with the moments of their pairs, as tensors.

    Args:
        judged: The judgements.
        moments: The moments of `judged.pairs`.
        processes: The processes, each with judgements of its own.
    """

    def __init__(self, judged: JudgedPairs, moments: MomentBlocks, processes: Reducer) -> None:
        device = processes.device
        self.moments, self.processes = moments, processes
        self.first, self.second = (torch.from_numpy(index).to(device) for index in (judged.first, judged.second))
        self.share, self.votes = (torch.from_numpy(value).float().to(device) for value in (judged.share, judged.votes))
        self.curvature = curvature_of(moments, processes)

    def losses(self, weights: Tensor, uses: Uses) -> Tensor:
        """Return the mean cross-entropy (K,) of heads (K, C) on the judgements that they see; NaN without any."""
        d = self.moments.distances(weights)
        logits = d[self.first[uses.row], uses.head] - d[self.second[uses.row], uses.head]
        votes = self.votes[uses.row]
        own = votes * F.binary_cross_entropy_with_logits(logits, self.share[uses.row], reduction="none")
        sums = torch.zeros(2, uses.heads, dtype=torch.float64, device=votes.device)
        sums[0].index_add_(0, uses.head, own.double())
        sums[1].index_add_(0, uses.head, votes.double())
        total, count = self.processes.reduce(sums, reduction="sum")
        return total / count


@dataclass(frozen=True)
class Fit:
    """Fitted heads.

    Attributes:
        weights: Channel weights (K, C), not negative.
        iterations: Number of iterations of the solver.
        objective: The minimum, the sum over the heads.
    """

    weights: Tensor
    iterations: int
    objective: float


def fit_heads(
    data: Judged,
    uses: Uses,
    prior: Tensor,
    strengths: Tensor,
    *,
    iterations: int,
    start: Tensor | None = None,
    least: float = 0.0,
    on_iteration: Callable[[int, float], None] = lambda _, __: None,
) -> Fit:
    """Fit heads to the judgements that each of them sees.

    All processes call this together and get the same weights: each computes the gradient of its own judgements.

    Args:
        data: The judgements and moments.
        uses: Which head sees which judgements.
        prior: Weights (K, C) to which the heads are drawn.
        strengths: Strength of the prior of each head, (K,).
        iterations: Most iterations of the solver.
        start: Weights (K, C) to start from; None for the prior.
        least: Lower bound of the weights: 0, or minus infinity for a regression without bounds.
        on_iteration: Called after each iteration with its number and the objective.

    Returns:
        The heads.
    """
    from scipy.optimize import minimize

    problem = _Objective(data, uses, prior, strengths)
    state = {"iteration": 0, "objective": float("nan")}

    def value(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        state["objective"], gradient = problem.value(x)
        return state["objective"], gradient

    def after(_: NDArray[np.float64]) -> None:
        state["iteration"] += 1
        on_iteration(int(state["iteration"]), state["objective"])

    result = minimize(
        value,
        problem.scaled(prior if start is None else start),
        jac=True,
        method="L-BFGS-B",
        bounds=np.stack([np.full(prior.numel(), least), np.full(prior.numel(), np.inf)], axis=1),
        callback=after,
        options={"maxiter": iterations, "maxfun": 4 * iterations, "maxcor": MEMORY, "ftol": 1e-13, "gtol": TOLERANCE},
    )
    return Fit(problem.weights(result.x), int(result.nit), float(result.fun))


class _Objective:
    """The objective of all heads together, and its gradient, in scaled variables."""

    def __init__(self, data: Judged, uses: Uses, prior: Tensor, strengths: Tensor) -> None:
        self._data, self._uses, self._prior = data, uses, prior
        self._penalty = strengths.double() * data.curvature.mean
        self._first, self._second = (index[uses.row] * uses.heads + uses.head for index in (data.first, data.second))
        self._share = data.share[uses.row].double()
        votes = data.votes[uses.row].double()
        total = torch.zeros(uses.heads, dtype=torch.float64, device=votes.device).index_add_(0, uses.head, votes)
        self._votes = votes / data.processes.reduce(total, reduction="sum").clamp_min(1e-30)[uses.head]
        # Channels vary by orders of magnitude. Half-way to equal deviations the solver needs the fewest iterations.
        deviation = data.curvature.deviation
        scale = prior.mean(dim=1, keepdim=True)
        scale = torch.where(scale > 0, scale, 1 / deviation.mean())
        self._scale = scale * (deviation.mean() / deviation).sqrt()

    def scaled(self, weights: Tensor) -> NDArray[np.float64]:
        """Return the variables of weights (K, C)."""
        return (weights / self._scale).double().cpu().numpy().reshape(-1)

    def weights(self, x: NDArray[np.float64]) -> Tensor:
        """Return the weights (K, C) of variables."""
        return torch.from_numpy(x.reshape(self._prior.shape)).to(self._scale.device).float() * self._scale

    def value(self, x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the objective and its gradient at x."""
        weights, moments = self.weights(x), self._data.moments
        d = moments.distances(weights).view(-1)
        logits = d[self._first] - d[self._second]
        logits = logits.double()
        loss = (self._votes * (F.softplus(logits) - self._share * logits)).sum()
        slope = (self._votes * (logits.sigmoid() - self._share)).to(d.dtype)
        by_pair = torch.zeros_like(d).index_add_(0, self._first, slope).index_add_(0, self._second, -slope)
        by_pair = by_pair.view(len(moments), -1)
        gradient = torch.zeros_like(weights)
        for which, block in moments.blocks():
            gradient += by_pair[torch.from_numpy(which).to(by_pair.device)].T @ block
        # The line search compares objectives that differ by little, so these sums are of float64.
        sums = self._data.processes.reduce(torch.cat([loss[None], gradient.view(-1).double()]), reduction="sum")
        difference = weights.double() - self._prior
        penalty = 0.5 * (self._penalty * difference.square().sum(dim=1)).sum()
        total = (sums[1:].view_as(weights) + self._penalty[:, None] * difference) * self._scale
        return float(sums[0] + penalty), total.cpu().numpy().reshape(-1)


def unadapted_scales(data: Judged, uses: Uses) -> Tensor:
    """Return the factor (K,) on the unadapted metric, all weights equal, with which it explains each head's judgements.

    It is above zero even if the unadapted metric is worse than chance.
    """
    return prior_scales(data, uses, torch.ones(1, data.moments.shape[1], device=data.processes.device))


def prior_scales(data: Judged, uses: Uses, prior: Tensor) -> Tensor:
    """Return the factor (K,) on weights (K, C) or (1, C) with which they explain each head's judgements best.

    It is above zero even if the weights are worse than chance.
    """
    d = data.moments.distances(prior).double()
    column = uses.head if len(prior) > 1 else torch.zeros_like(uses.head)
    x = d[data.first[uses.row], column] - d[data.second[uses.row], column]
    share, votes, head = data.share[uses.row].double(), data.votes[uses.row].double(), uses.head

    def sums(*values: Tensor) -> Tensor:
        own = torch.zeros(len(values), uses.heads, dtype=torch.float64, device=x.device)
        for place, value in zip(own, values, strict=True):
            place.index_add_(0, head, value)
        return data.processes.reduce(own, reduction="sum")

    squares, count = sums(votes * x.square(), votes)
    unit = (count / squares.clamp_min(1e-30)).sqrt()  # the inverse deviation of the differences
    factor = unit.clone()
    for _ in range(SCALE_ITERATIONS):  # Newton's method on a convex function of one variable, with bounded steps
        p = torch.sigmoid(factor[head] * x)
        slope, curve = sums(votes * (p - share) * x, votes * p * (1 - p) * x.square())
        step = (slope / curve.clamp_min(1e-30)).clamp(-unit, unit)
        factor = (factor - step).clamp(LEAST_SCALE * unit, 1e3 * unit)
    return factor.float()
