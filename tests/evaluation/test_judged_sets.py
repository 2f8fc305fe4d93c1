"""Scores on judgement sets, compared with plain loops over the table."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from fastdps.contexts.judgements import judged_pairs
from fastdps.errors import FastDPSError
from fastdps.evaluation.judged_scores import JudgementScores
from fastdps.evaluation.judged_sets import (
    BINS,
    JudgedDistances,
    bootstrap_means,
    judged_distances,
    score_judged,
)
from fastdps.loading.loader import open_shards
from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.run_schema import SCORES
from fastdps.runtime.json_files import check
from fastdps.shards.judgements import read_names
from helpers.judged_images import packed_judged

HEADS = ("pooled", "bright", "colour")


@pytest.fixture(scope="module")
def judged_set(tmp_path_factory) -> Path:
    return packed_judged(tmp_path_factory.mktemp("judged"), rows=300, images=20)


@pytest.fixture(scope="module")
def metrics():
    backbone = Backbone("alexnet", pretrained=False, seed=0)
    weights = torch.rand(3, 1152, generator=torch.Generator().manual_seed(0)) ** 4
    return PerceptualMetric(backbone), PerceptualMetric(backbone, weights, judges=HEADS)


@pytest.fixture(scope="module")
def distances(judged_set, metrics) -> JudgedDistances:
    baseline, adapted = metrics
    location = judged_set / "train"
    return judged_distances(baseline, [adapted], location, open_shards(location, batch_size=8, seed=None))


@pytest.fixture(scope="module")
def scores(distances) -> JudgementScores:
    return score_judged(distances, Path("somewhere"), "00")


def test_scores_are_those_of_a_loop_over_the_csv(judged_set, metrics, scores):
    """Votes and majorities, with distances of the metric computed pair by pair."""
    location = judged_set / "train"
    (batch,) = open_shards(location, batch_size=100, seed=None).epoch(0)
    names = read_names(location)
    images = {names[i]: x.permute(2, 0, 1) / 255 for i, x in zip(batch.ids.tolist(), batch.images, strict=True)}
    baseline, adapted = metrics

    everything = torch.stack(list(images.values()))

    @functools.cache
    def distances_of(ref):
        x = images[ref].expand_as(everything)
        return dict(zip(images, torch.cat([baseline(x, everything), adapted(x, everything)], dim=1), strict=True))

    sums = {}
    with (judged_set.parent / "source" / "judged.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            d = [distances_of(row["ref"])[row[name]] for name in ("p0", "p1")]
            votes, share = float(row["votes"]), float(row["judge"])
            head = HEADS.index(row["person"]) if row["person"] in HEADS else 0
            for who, column in ((row["person"], 1 + head), ("everyone", 1)):
                for which, k in (("before", 0), ("after", column)):
                    agrees = share if d[0][k] > d[1][k] else 1 - share
                    found = sums.setdefault((who, which), [0.0, 0.0])
                    found[0] += votes * agrees
                    found[1] += votes
    for person in ("bright", "colour", "random"):
        own = scores.judges[person].votes
        assert own.before.value == pytest.approx(np.divide(*sums[person, "before"]))
        assert own.after.value == pytest.approx(np.divide(*sums[person, "after"]))
        assert own.change.value == pytest.approx(own.after.value - own.before.value)
    assert scores.pooled.votes.before.value == pytest.approx(np.divide(*sums["everyone", "before"]))
    assert scores.pooled.votes.after.value == pytest.approx(np.divide(*sums["everyone", "after"]))


def hand_made(votes_a, votes_b, judge=None):
    """Five judgements of one reference each, whose distances say that a is closer."""
    from fastdps.shards.judgements import JudgementTable

    n = len(votes_a)
    table = JudgementTable(
        ref=np.arange(n), a=np.full(n, 100), b=np.full(n, 101), votes_a=np.array(votes_a, float),
        votes_b=np.array(votes_b, float), judge=np.full(n, -1) if judge is None else np.array(judge),
        judges=() if judge is None else ("x", "y"), row=np.arange(n) + 1,
    )  # fmt: skip
    judged = judged_pairs(table)
    d = (judged.ids[judged.pairs[:, 1]] == 101).astype(float)
    return JudgedDistances(judged, d, d[:, None], ("pooled",))


def test_ceilings_majorities_and_ties_are_those_computed_by_hand():
    scores = score_judged(hand_made([4, 3, 2, 1, 0], [0, 1, 2, 3, 4]), Path("x"), "00").pooled
    assert scores.triplets == 5
    assert scores.ties == 1
    assert scores.votes.after.value == pytest.approx(10 / 20)
    assert scores.votes.ceiling == pytest.approx((4 + 3 + 2 + 3 + 4) / 20)
    assert scores.human == pytest.approx((4 + 3 + 3 + 4) / 16)
    assert scores.majority is not None
    assert scores.majority.after.value == pytest.approx(2 / 4)


def test_single_votes_have_no_majority():
    scores = score_judged(hand_made([1, 0, 1], [0, 1, 0]), Path("x"), "00").pooled
    assert scores.majority is None
    assert scores.human is None
    assert scores.votes.after.value == pytest.approx(2 / 3)


def test_intervals_are_those_of_a_plain_bootstrap():
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, 40, 500)
    values = np.stack([rng.random(500), (rng.random(500) < 0.3 + 0.01 * clusters).astype(float)], axis=1)
    weights = rng.integers(1, 5, 500).astype(float)
    means, low, high = bootstrap_means(values, weights, clusters)
    assert means == pytest.approx(np.average(values, axis=0, weights=weights))
    numbers = np.unique(clusters)
    rows_of = [np.flatnonzero(clusters == number) for number in numbers]
    resampled = []
    for _ in range(1500):
        rows = np.concatenate([rows_of[place] for place in rng.integers(0, len(numbers), len(numbers))])
        resampled.append(np.average(values[rows], axis=0, weights=weights[rows]))
    expected = np.percentile(resampled, [2.5, 97.5], axis=0)
    np.testing.assert_allclose([low, high], expected, atol=0.012)


def test_intervals_hold_their_value_and_widen_with_dependence():
    rng = np.random.default_rng(1)
    values = (rng.random((400, 1)) < 0.6).astype(float)
    independent = bootstrap_means(values, np.ones(400), np.arange(400))
    repeated = bootstrap_means(np.repeat(values[:100], 4, axis=0), np.ones(400), np.repeat(np.arange(100), 4))
    widths = [high[0] - low[0] for _, low, high in (independent, repeated)]
    assert widths[1] > 1.6 * widths[0]
    exact = stats.binomtest(int(values.sum()), 400).proportion_ci(method="wilson")
    assert (independent[1][0], independent[2][0]) == pytest.approx((exact.low, exact.high), abs=0.012)
    assert bootstrap_means(values, np.ones(400), np.zeros(400, int)) == (independent[0],) * 3


def test_calibration_counts_every_vote_once(scores):
    assert sum(one.votes for one in scores.calibration) == pytest.approx(450)
    assert len(scores.calibration) <= BINS
    predicted = [one.predicted for one in scores.calibration]
    assert predicted == sorted(predicted)
    assert all(0.5 <= one <= 1 for one in predicted)


def test_votes_drawn_from_the_probabilities_are_calibrated():
    rng = np.random.default_rng(0)
    made = hand_made(np.ones(4000), np.ones(4000))
    logit = rng.normal(0, 2, 4000)
    is_b = rng.random(4000) < 1 / (1 + np.exp(-logit))
    d = np.zeros(len(made.judged.pairs))
    d[made.judged.first] = logit + 10
    d[made.judged.second] = 10
    judged = judged_pairs_with(made.judged, ~is_b, is_b)
    found = score_judged(JudgedDistances(judged, d, d[:, None], ("pooled",)), Path("x"), "00").calibration
    assert [one.observed for one in found] == pytest.approx([one.predicted for one in found], abs=0.06)


def judged_pairs_with(judged, votes_a, votes_b):
    import dataclasses

    return dataclasses.replace(judged, votes_a=votes_a.astype(float), votes_b=votes_b.astype(float))


def test_a_judge_without_a_head_is_scored_by_the_pooled_one(scores):
    stranger = scores.judges["random"].votes
    assert stranger.pooled is not None
    assert stranger.after == stranger.pooled
    known = scores.judges["bright"].votes
    assert known.pooled is not None
    assert known.after != known.pooled


def test_scores_survive_json_and_fit_the_schema(scores):
    content = json.loads(json.dumps(scores.to_dict()))
    assert JudgementScores.from_dict(content) == scores
    check(content, SCORES["judgements?"].schema)


def test_distances_that_are_not_finite_are_an_error(judged_set, metrics):
    baseline, _ = metrics
    broken = PerceptualMetric(baseline.backbone, torch.full((1, 1152), torch.nan), judges=["pooled"])
    location = judged_set / "train"
    with pytest.raises(FastDPSError, match="NaN or infinite"):
        judged_distances(baseline, [broken], location, open_shards(location, batch_size=8, seed=None))
