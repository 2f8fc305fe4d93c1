"""The accuracy to expect of a fitted head on other images, and where it is heading.

    held-out agreement of each setting (R, M) --bootstrap over settings--> accuracy with an interval, gain over the base
    held-out gain at several numbers of judgements --> learning curve --> gain to expect of more judgements

The setting is chosen by the same held-out judgements that measure it, so its accuracy there is too high. That is
corrected by the bootstrap of Tsamardinos et al. (2018, "Bootstrapping the out-of-sample predictions"): settings are
chosen on a resample and measured on the rest.

Shapes: R judgements, M settings (a prior and its strength), B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdps.metric.scores import Interval

Array = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 200
#: Most judgements for which all pairs that share an image are summed.
MOST_PAIRED = 3000
#: Numbers of further judgements that a forecast is made for.
MORE = (10, 20, 40, 100, 200, 500, 1000)


@dataclass(frozen=True)
class HeldOut:
    """What settings say about held-out judgements.

    Attributes:
        agreement: Share of the votes of each judgement that agree with each setting, (R, M).
        loss: Cross-entropy of each judgement under each setting, (R, M).
        base: Share of the votes that agree with the base, (R,).
        votes: Number of votes; 0 leaves a judgement out, such as one without a majority, (R,).
        cluster: Judgements of one cluster are resampled together, int64 (R,).
        images: Indices of ref, a and b, int64 (R, 3): judgements that share an image depend on each other.
    """

    agreement: Array
    loss: Array
    base: Array
    votes: Array
    cluster: NDArray[np.int64]
    images: NDArray[np.int64]


@dataclass(frozen=True)
class Expected:
    """What to expect on other images.

    Attributes:
        accuracy: Share of the votes that agree with the fit.
        base: Share of the votes that agree with the base.
        gain: The difference.
    """

    accuracy: Interval
    base: Interval
    gain: Interval


def expect(held_out: HeldOut, chosen: int, seed: int = 0) -> Expected:
    """Return the accuracy to expect of the chosen setting, of the base, and the gain.

    Args:
        held_out: What all settings say about the held-out judgements.
        chosen: The setting with the least loss on all of them.
        seed: Seed of the resamples.
    """
    votes = held_out.votes
    own = held_out.agreement[:, chosen]
    optimism = _optimism(held_out, chosen, seed)
    accuracy, base = _mean(own, votes) - optimism, _mean(held_out.base, votes)
    difference = own - held_out.base
    half = _quantile(held_out) * _standard_error(difference, held_out, least=1 / max(1.0, (votes > 0).sum()))
    gain = _mean(difference, votes) - optimism
    return Expected(
        _with_interval(accuracy, own, held_out),
        _with_interval(base, held_out.base, held_out),
        Interval(gain, max(-1.0, gain - half), min(1.0, gain + half)),
    )


def _optimism(held_out: HeldOut, chosen: int, seed: int) -> float:
    """Return how much the accuracy of the chosen setting exceeds that of one chosen on other judgements."""
    _, cluster = np.unique(held_out.cluster, return_inverse=True)
    count = int(cluster.max(initial=-1)) + 1
    if count < 4 or held_out.loss.shape[1] < 2:
        return 0.0
    votes = held_out.votes

    def sums(values: Array) -> Array:
        total = np.zeros((count, values.shape[1]))
        np.add.at(total, cluster, votes[:, None] * values)
        return total

    loss, agreement = sums(held_out.loss), sums(held_out.agreement)
    total = np.bincount(cluster, votes, count)
    drawn = np.random.Generator(np.random.Philox(seed)).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    best = (drawn @ loss).argmin(axis=1)
    rest = (drawn == 0).astype(float)
    left = rest @ total
    useful = left > 0
    of_best = (rest @ agreement)[np.arange(len(best)), best][useful] / left[useful]
    of_chosen = (rest @ agreement)[:, chosen][useful] / left[useful]
    return max(0.0, float((of_chosen - of_best).mean())) if useful.any() else 0.0


def _mean(values: Array, votes: Array) -> float:
    return float((votes * values).sum() / max(votes.sum(), 1e-30))


def _quantile(held_out: HeldOut) -> float:
    """Return the factor from a standard error to half an interval, Student's with the number of clusters."""
    from scipy.stats import t

    return float(t.ppf(0.5 + CONFIDENCE / 2, max(1, len(np.unique(held_out.cluster[held_out.votes > 0])) - 1)))


def _standard_error(values: Array, held_out: HeldOut, least: float = 0.0) -> float:
    """Return the standard error of a weighted mean.

    It is the largest of three: judgements are independent; they depend on others of their cluster; or on all that share
    an image (Fafchamps and Gubert 2007, "The formation of risk sharing networks").

    `least` is added to the variance of a value, so that few equal values do not look certain.
    """
    votes, cluster = held_out.votes, held_out.cluster
    deviation = votes * (values - _mean(values, votes))
    used = max(2, int((votes > 0).sum()))
    total = max(votes.sum(), 1e-30)
    alone = np.square(deviation).sum() * used / (used - 1)
    _, place = np.unique(cluster, return_inverse=True)
    together = np.square(np.bincount(place, deviation)).sum()
    sharing = _sum_over_sharing(deviation, held_out.images) if len(values) <= MOST_PAIRED else 0.0
    extra = least * np.square(votes).sum()
    return math.sqrt(max(alone, together, sharing) + extra) / total


def _sum_over_sharing(values: Array, images: NDArray[np.int64]) -> float:
    """Return the sum of the products of the values of all two judgements that share an image, each with itself too."""
    from scipy.sparse import coo_array

    _, place = np.unique(images, return_inverse=True)
    rows = np.repeat(np.arange(len(images)), 3)
    named = coo_array((np.ones(len(rows)), (rows, place.reshape(-1)))).tocsr()
    shared = (named @ named.T) > 0
    return float(values @ (shared.astype(float) @ values))


def _with_interval(value: float, values: Array, held_out: HeldOut) -> Interval:
    """Return a share with Wilson's interval, for as many independent votes as its standard error stands for."""
    votes, value = held_out.votes, min(1.0, max(0.0, value))
    mean, error = _mean(values, votes), _standard_error(values, held_out)
    kish = votes.sum() ** 2 / max(np.square(votes).sum(), 1e-30)  # the number of judgements, if votes differ
    size = float(max(1.0, mean * (1 - mean) / error**2 if 0 < mean < 1 and error > 0 else kish))
    z = _quantile(held_out)
    centre = (value + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(value * (1 - value) / size + z * z / (4 * size * size))
    return Interval(value, float(max(0.0, centre - half)), float(min(1.0, centre + half)))


@dataclass(frozen=True)
class CurvePoint:
    """The held-out accuracy with some number of judgements.

    Attributes:
        judgements: Mean number of judgements that were trained on.
        accuracy: Share of the held-out votes that agree.
    """

    judgements: float
    accuracy: float


@dataclass(frozen=True)
class Forecast:
    """What more judgements are likely to give.

    Attributes:
        more: Number of further judgements.
        gain: Change of the accuracy.
    """

    more: int
    gain: Interval


def forecast(points: Sequence[CurvePoint], base: float, judgements: int, votes: float) -> Forecast:
    """Extrapolate a learning curve.

    The accuracy with N judgements is base + g N / (N + h). All g and h are weighted by how well they explain the
    points, whose errors are those of shares of `votes` votes; a quarter of each is taken, as they are measured on the
    same judgements.

    Args:
        points: The learning curve.
        base: Accuracy of the base on the same held-out judgements.
        judgements: Number of judgements so far.
        votes: Number of votes that the curve was measured on.

    Returns:
        The gain to expect of about half as many judgements again.
    """
    g, h = (grid.ravel() for grid in np.meshgrid(np.linspace(0, 1 - min(base, 0.95), 41), np.geomspace(2, 1000, 25)))
    misfit = np.zeros_like(g)
    for point in points:
        variance = max(point.accuracy * (1 - point.accuracy), 0.05) / max(votes, 1)
        misfit += (base + g * point.judgements / (point.judgements + h) - point.accuracy) ** 2 / variance
    weight = np.exp(-0.5 * 0.25 * (misfit - misfit.min()))
    weight /= weight.sum()
    more = max((count for count in MORE if count <= max(MORE[0], judgements * 0.6)), default=MORE[0])
    gain = g * ((judgements + more) / (judgements + more + h) - judgements / (judgements + h))
    order = np.argsort(gain)
    low, high = np.interp([0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2], np.cumsum(weight[order]), gain[order])
    return Forecast(more, Interval(float(weight @ gain), float(low), float(high)))
