"""Scores: how well distances agree with labels or votes. One definition each."""

from __future__ import annotations

import torch
from torch import Tensor


def prefers_second(d0: Tensor, d1: Tensor) -> Tensor:
    """The metric's choice: 1 where 1 is closer to the reference, 0 where 0 is, 0.5 on a tie; NaN for NaN."""
    difference = d0 - d1
    return torch.where(difference.isnan(), difference, 0.5 * (1 + torch.sign(difference)))  # the sign of NaN is 0


def agreeing_votes(chosen: Tensor, votes: Tensor, *, of: int = 1) -> Tensor:
    """How many of `of` choices agree with the votes, in the mean: `chosen` counts those for 1, `votes` is a share.

    With labels 0 or 1 as votes, counts of choices and halves stay exact.
    """
    return chosen * votes + (of - chosen) * (1 - votes)


def two_afc(d0: Tensor, d1: Tensor, votes: Tensor) -> Tensor:
    """Two-alternative forced choice: the share of votes that agree with the metric, element by element.

    `votes` in [0, 1] is the share that finds 1 closer to the reference; the metric's choice is the smaller distance,
    and a tie counts 0.5. With labels 0 or 1 as votes this is the accuracy. The three broadcast.
    Source: Zhang et al. 2018, section 2.2 and its evaluation code.
    """
    return agreeing_votes(prefers_second(d0, d1), votes)


def human_ceiling(votes: Tensor) -> Tensor:
    """How often a person agrees with a person drawn from the same votes: p^2 + (1 - p)^2, element by element.

    The mean over a set is what 2AFC scores are measured against. Source: Zhang et al. 2018, section 2.2.
    """
    return votes.square() + (1 - votes).square()


def average_precision(distances: Tensor, votes: Tensor) -> Tensor:
    """Just noticeable differences: the average precision of finding the pairs that people took for the same.

    Pairs are retrieved by rising distance: distances (n, K) and votes (n,), the share in [0, 1] that took a pair for
    the same, give (K,) float64. A pair counts with weight v as positive and with 1 - v as negative, and pairs at equal
    distances are retrieved together, so that their order does not matter. This is scikit-learn's
    `average_precision_score` with those weights. Where no vote says "same" it is 0, as there; a distance that is NaN
    makes it NaN.

    LPIPS's own evaluation first raises every precision to the best one at any higher recall, as PASCAL VOC does, and
    leaves pairs at equal distances in the order of its sort. That is higher, the more so the fewer pairs there are:
    distances 1, 2, 3, 4 with the votes 0, 1, 1, 0 score 0.583 here and 0.667 there; of simulated pairs with three votes
    each, 50 score 0.783 here and 0.801 there, and 4,800, as in BAPPS, 0.761 here and 0.762 there.
    """
    pairs = len(votes)
    ordered, order = distances.sort(dim=0)
    v = votes.double()[order]
    positions = torch.arange(pairs, device=distances.device)[:, None].expand_as(order)
    is_last = torch.ones_like(order, dtype=torch.bool)  # of those at its distance
    is_last[:-1] = ordered[:-1] != ordered[1:]
    last = torch.where(is_last, positions, pairs - 1).flip(0).cummin(dim=0).values.flip(0)
    precision = v.cumsum(dim=0).gather(0, last) / (last + 1)  # a pair weighs v + (1 - v) = 1
    found = (v * precision).sum(dim=0) / votes.double().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return found.masked_fill(distances.isnan().any(dim=0), torch.nan)


def improved(baseline: Tensor, adapted: Tensor) -> Tensor:
    """Whether a context is improved: its adapted accuracy is strictly above its baseline accuracy."""
    return adapted > baseline
