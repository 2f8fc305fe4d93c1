"""Score metrics on a judgement set: agreement with each judge and with all together, with bootstrap intervals.

judgement set --> moments of pairs, once --> distances of the unadapted metric and of all heads --> scores per judge

Intervals are of the bootstrap over reference images: judgements of one reference are resampled together. Resampling
all three images of a triplet independently would count the noise of a single vote seven times.
Shapes: R judgements, K heads, S statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastdps.contexts.judgements import JudgedPairs, judged_pairs
from fastdps.errors import FastDPSError
from fastdps.evaluation.judged_scores import CalibrationBin, JudgementScores, JudgeScores, VoteAgreement
from fastdps.loading.loader import ShardLoader
from fastdps.metric.perceptual import PerceptualMetric, with_unadapted
from fastdps.metric.scores import Interval, two_afc
from fastdps.shards.judgements import read_judgements
from fastdps.shards.storage import Location
from fastdps.training.options import MomentLimits
from fastdps.training.pair_moments import PairMoments

RESAMPLES = 2000
CONFIDENCE = 0.95
#: Elements that are resampled at a time.
BATCH_ELEMENTS = 1 << 23
#: Number of bins of the calibration, of about equal numbers of votes.
BINS = 10


@dataclass(frozen=True)
class JudgedDistances:
    """Distances of the pairs of a judgement set.

    Attributes:
        judged: The judgements.
        before: Distances of the unadapted metric, float64 (P,).
        after: Distances of the adapted metrics, (P, K).
        judges: Names of the K heads; empty for a run without judges.
        unadapted: Distances of the only trained backbone with equal weights, (P,); None for other runs.
    """

    judged: JudgedPairs
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    judges: tuple[str, ...]
    unadapted: NDArray[np.float64] | None = None


def judged_distances(
    baseline: PerceptualMetric,
    adapted: Sequence[PerceptualMetric],
    location: Location,
    loader: ShardLoader,
    *,
    limits: MomentLimits | None = None,
    progress: bool = False,
) -> JudgedDistances:
    """Compute the distances of all judged pairs of a set.

    Args:
        baseline: The unadapted metric.
        adapted: Metrics with K contexts together. Metrics that share the backbone of `baseline` share its moments.
        location: Directory or URL of the set.
        loader: Its images, in packed order.
        limits: Limits of the kept moments.
        progress: Show progress on the console.

    Returns:
        The distances.

    Raises:
        ShardError: The set is damaged.
        FastDPSError: A metric gives NaN or infinite distances.
    """
    judged = judged_pairs(read_judgements(location, loader.manifest))
    moments = PairMoments(baseline, loader, judged.ids, judged.pairs, limits=limits, progress=progress)
    before = moments.distances(baseline.weights[:1])
    judges = tuple(name for metric in adapted for name in metric.judges)
    if (extended := with_unadapted(baseline, adapted)) is not None:
        adapted = [extended]
    parts = []
    for metric in adapted:
        own = moments
        if metric.backbone is not baseline.backbone:
            own = PairMoments(metric, loader, judged.ids, judged.pairs, limits=limits, progress=progress)
        parts.append(own.distances(metric.weights))
    after = torch.cat(parts, dim=1)
    if not (before.isfinite().all() and after.isfinite().all()):
        raise FastDPSError(
            f"on {location} the metric gives distances that are NaN or infinite: its training diverged. Train again "
            "with a lower learning rate."
        )
    numbers = after.double().cpu().numpy()
    unadapted, numbers = (None, numbers) if extended is None else (numbers[:, 0], numbers[:, 1:])
    return JudgedDistances(judged, before[:, 0].double().cpu().numpy(), numbers, judges, unadapted)


def score_judged(distances: JudgedDistances, location: Location, sha256: str) -> JudgementScores:
    """Score distances on the judgements of each judge, and of all together.

    Args:
        distances: The distances of the pairs.
        location: The set, for the result.
        sha256: The hash of its content, for the result.

    Returns:
        The scores.
    """
    judged, heads = distances.judged, distances.judges
    pooled = judged.pool()
    places = pair_places(pooled.pairs, judged)
    everyone = distances.after[places] if not heads else distances.after[places][:, [0]]
    description = {
        "path": str(location),
        "sha256": sha256,
        "triplets": len(judged),
        "images": len(np.unique(judged.images)),
    }
    judges = {}
    for number, name in enumerate(judged.judges):
        own = judged.select(judged.judge == number)
        rows = pair_places(own.pairs, judged)
        after = distances.after[rows]
        own_head = after if not heads else after[:, [heads.index(name) if name in heads else 0]]
        columns = {"before": distances.before[rows][:, None], "after": own_head}
        if heads:
            columns["pooled"] = after[:, [0]]
        if distances.unadapted is not None:
            columns["unadapted"] = distances.unadapted[rows][:, None]
        judges[name] = _scores(own, columns)
    columns = {"before": distances.before[places][:, None], "after": everyone}
    if distances.unadapted is not None:
        columns["unadapted"] = distances.unadapted[places][:, None]
    calibration = _calibration(pooled, everyone[:, 0]) if heads else ()
    return JudgementScores(description, _scores(pooled, columns), judges, calibration)


def pair_places(pairs: NDArray[np.int64], of: JudgedPairs) -> NDArray[np.int64]:
    """Return the indices of some pairs in all pairs, which are sorted."""
    width = len(of.ids)
    return np.searchsorted(of.pairs[:, 0] * width + of.pairs[:, 1], pairs[:, 0] * width + pairs[:, 1])


def _scores(judged: JudgedPairs, columns: Mapping[str, NDArray[np.float64]]) -> JudgeScores:
    """Return the scores of distances (P, K) by name: those of `VoteAgreement`."""
    share, votes = judged.share, judged.votes
    has_majority = share != 0.5

    def statistics(target: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the agreement of each judgement with a target (R,): that of each column, and the change, (R, S)."""
        wanted = torch.from_numpy(target)[:, None]
        agreeing = [
            two_afc(torch.from_numpy(d[judged.first]), torch.from_numpy(d[judged.second]), wanted).mean(dim=1).numpy()
            for d in columns.values()
        ]
        return np.stack([*agreeing, agreeing[1] - agreeing[0]], axis=1)

    majority = (share > 0.5).astype(float)
    most = np.maximum(share, 1 - share)
    several, names = bool((votes > 1).any()), [*columns, "change"]
    reference = judged.images[:, 0]
    human = float((votes * most)[has_majority].sum() / votes[has_majority].sum()) if has_majority.any() else None
    return JudgeScores(
        triplets=len(judged),
        images=len(np.unique(judged.images)),
        ties=int((~has_majority).sum()),
        human=human if several else None,
        votes=_agreement(names, statistics(share), votes, reference, float((votes * most).sum() / votes.sum())),
        majority=_agreement(names, statistics(majority), has_majority.astype(float), reference, 1.0)
        if several and has_majority.any()
        else None,
    )


def _agreement(
    names: Sequence[str],
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    reference: NDArray[np.int64],
    ceiling: float,
) -> VoteAgreement:
    """Return weighted means of `values` (R, S) with intervals, by name."""
    rows = zip(*bootstrap_means(values, weights, reference), strict=True)
    found: dict[str, Any] = {name: Interval(*row) for name, row in zip(names, rows, strict=True)}
    return VoteAgreement(**{"pooled": None, **found}, ceiling=ceiling)


def bootstrap_means(
    values: NDArray[np.float64], weights: NDArray[np.float64], clusters: NDArray[np.int64]
) -> tuple[list[float], list[float], list[float]]:
    """Return weighted means and their 95 % intervals of the bootstrap over clusters.

    Args:
        values: The values, (R, S).
        weights: The weight of each row, (R,).
        clusters: The cluster of each row, which is resampled as a unit, (R,).

    Returns:
        The means, and the lower and upper ends of their intervals (percentiles), each of length S. With a single
        cluster both ends are the mean.
    """
    from scipy.stats import bootstrap

    _, cluster = np.unique(clusters, return_inverse=True)
    count = int(cluster.max()) + 1
    sums = np.stack([np.bincount(cluster, weights * column, count) for column in values.T])
    total = np.tile(np.bincount(cluster, weights, count), (len(sums), 1))
    means = sums.sum(axis=1) / total.sum(axis=1)
    if count < 2:
        return (means.tolist(),) * 3

    def ratio(a: NDArray[np.float64], b: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return a.sum(axis=axis) / np.maximum(b.sum(axis=axis), 1e-12)

    found = bootstrap(
        (sums, total),
        ratio,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_ELEMENTS // sums.size),
        vectorized=True,
        paired=True,
        axis=1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return means.tolist(), found.low.tolist(), found.high.tolist()


def _calibration(judged: JudgedPairs, distances: NDArray[np.float64]) -> tuple[CalibrationBin, ...]:
    """Return the calibration of sigmoid(d_a - d_b) in bins of about equal numbers of votes."""
    logit = distances[judged.first] - distances[judged.second]
    confidence = 1 / (1 + np.exp(-np.abs(logit)))
    agreeing = np.where(logit > 0, judged.votes_b, judged.votes_a)
    order = np.argsort(confidence, kind="stable")
    ends = np.searchsorted(np.cumsum(judged.votes[order]), judged.votes.sum() * np.arange(1, BINS) / BINS)
    bins = []
    for part in np.split(order, ends):
        if len(part):
            votes = float(judged.votes[part].sum())
            predicted = float((confidence * judged.votes)[part].sum() / votes)
            bins.append(CalibrationBin(predicted, float(agreeing[part].sum() / votes), votes))
    return tuple(bins)
