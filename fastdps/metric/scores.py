"""Scores of distances against labels or votes: the only definition of each score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval.

    Attributes:
        value: The value.
        low: The lower end.
        high: The upper end.
    """

    value: float
    low: float
    high: float


def prefers_second(d0: Tensor, d1: Tensor) -> Tensor:
    """Return the metric's choice: 1 where 1 is closer to the reference, 0 where 0 is, 0.5 on a tie, NaN for NaN."""
    difference = d0 - d1
    return torch.where(difference.isnan(), difference, 0.5 * (1 + torch.sign(difference)))  # the sign of NaN is 0


def agreeing_votes(chosen: Tensor, votes: Tensor, *, of: int = 1) -> Tensor:
    """Return the expected number of choices that agree with the votes, element by element.

    With labels 0 or 1 as votes the result is exact: counts and halves.

    Args:
        chosen: The number of choices of 1, ties counted as 0.5.
        votes: The share of votes for 1, in [0, 1].
        of: The number of choices.
    """
    return chosen * votes + (of - chosen) * (1 - votes)


def two_afc(d0: Tensor, d1: Tensor, votes: Tensor) -> Tensor:
    """Return the two-alternative forced choice score: the share of votes that agree with the metric, per element.

    The metric chooses the smaller distance; a tie counts 0.5. With labels 0 or 1 as votes this is the accuracy.
    Source: Zhang et al. 2018, section 2.2 and its evaluation code.

    Args:
        d0: Distances of 0 to the reference. The three arguments broadcast.
        d1: Distances of 1 to the reference.
        votes: The share of votes, in [0, 1], that found 1 closer.

    Example:
        >>> two_afc(torch.tensor([0.2, 0.5]), torch.tensor([0.4, 0.5]), torch.tensor([0.25, 1.0]))
        tensor([0.7500, 0.5000])
    """
    return agreeing_votes(prefers_second(d0, d1), votes)


def human_ceiling(votes: Tensor) -> Tensor:
    """Return the probability that two people drawn from the same votes agree: p^2 + (1 - p)^2, per element.

    The mean over a set is the human ceiling of 2AFC scores. Source: Zhang et al. 2018, section 2.2.
    """
    return votes.square() + (1 - votes).square()


def average_precision(distances: Tensor, votes: Tensor) -> Tensor:
    """Return the average precision of retrieving pairs that people judged "same" (just noticeable differences).

    Pairs are retrieved by ascending distance. A pair counts with weight v as positive and 1 - v as negative. Pairs at
    equal distances are retrieved together, so their order does not matter. This is scikit-learn's
    `average_precision_score` with these weights. It is 0 where no vote says "same", as in scikit-learn, and NaN where a
    distance is NaN.

    LPIPS's own evaluation first raises every precision to the highest one at any higher recall, as PASCAL VOC does, and
    leaves pairs at equal distances in the order of its sort. Its scores are higher, the more so the fewer pairs there
    are: distances 1, 2, 3, 4 with votes 0, 1, 1, 0 score 0.583 here and 0.667 there; simulated pairs with three votes
    each score 0.783 here and 0.801 there for 50 pairs, and 0.761 and 0.762 for 4,800 pairs, as in BAPPS.

    Args:
        distances: (n, K).
        votes: (n,), the share v of votes, in [0, 1], that said "same".

    Returns:
        Average precision (K,) float64.
    """
    pairs = len(votes)
    ordered, order = distances.sort(dim=0)
    v = votes.double()[order]
    positions = torch.arange(pairs, device=distances.device)[:, None].expand_as(order)
    is_last = torch.ones_like(order, dtype=torch.bool)  # the last pair at its distance
    is_last[:-1] = ordered[:-1] != ordered[1:]
    last = torch.where(is_last, positions, pairs - 1).flip(0).cummin(dim=0).values.flip(0)
    precision = v.cumsum(dim=0).gather(0, last) / (last + 1)  # a pair has the weight v + (1 - v) = 1
    found = (v * precision).sum(dim=0) / votes.double().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return found.masked_fill(distances.isnan().any(dim=0), torch.nan)


def improved(baseline: Tensor, adapted: Tensor) -> Tensor:
    """Return which contexts are improved: the adapted accuracy is strictly above the baseline accuracy."""
    return adapted > baseline
