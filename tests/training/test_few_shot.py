"""Heads from few judgements: no leaks between folds, honest accuracy, and what is said about it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from fastdps.metric.backbones import Backbone
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.scores import two_afc
from fastdps.training.answers import Answers
from fastdps.training.cross_validation import agreement, make_rounds
from fastdps.training.differences import Differences, HeadPrior, priors_of
from fastdps.training.expected import CurvePoint, HeldOut, expect, forecast
from fastdps.training.few_shot import LEAST, fit_differences

CHANNELS = 60
EQUAL = HeadPrior("base", torch.ones(CHANNELS))


def world(seed: int, images: int = 200):
    """Squared differences of random vectors that stand for images, as moments."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((images, CHANNELS)) * np.geomspace(1, 0.3, CHANNELS)
    return rng, lambda i, j: np.square(vectors[i] - vectors[j])


def judged_by(weights, rows: int, seed: int, *, noise: float = 0.0, images: int = 200, judges=None):
    """Random judgements of a judge with known weights, as differences; and the judge's logits."""
    rng, moments = world(seed, images)
    triplets = np.stack([rng.choice(images, 3, replace=False) for _ in range(rows)])
    x = moments(triplets[:, 0], triplets[:, 1]) - moments(triplets[:, 0], triplets[:, 2])
    share = (x @ weights > 0).astype(float)
    flipped = rng.random(rows) < noise
    share[flipped] = 1 - share[flipped]
    return Differences(Answers.of(triplets, share, None, judges).judged(), x), share


SPARSE = np.where(np.arange(CHANNELS) % 10 == 0, 1.0, 0.0)  # a judge who looks at a tenth of the channels


def test_a_fit_beats_the_base_and_says_so():
    data, _ = judged_by(SPARSE, 150, seed=0)
    fit = fit_differences(data, [EQUAL])
    assert fit.verdict == "adapted"
    assert fit.expected is not None
    assert fit.expected.gain.low > 0
    assert "expect the metric to agree with" in fit.message
    others, share = judged_by(SPARSE, 3000, seed=1)
    own, base = (((others.x @ w > 0) == share).mean() for w in (fit.weights[0].numpy(), np.ones(CHANNELS)))
    assert own > base + 0.05
    assert fit.expected.accuracy.low <= own <= fit.expected.accuracy.high
    accuracies = [point.accuracy for point in fit.curve]
    assert accuracies[-1] > accuracies[0]
    assert fit.forecast is not None
    assert fit.forecast.gain.low >= 0
    assert (fit.weights >= 0).all()


@pytest.mark.parametrize("rows", [40, 120])
def test_judgements_that_follow_the_base_keep_it(rows):
    data, _ = judged_by(np.ones(CHANNELS), rows, seed=2)
    fit = fit_differences(data, [EQUAL])
    assert fit.verdict == "kept"
    assert "does not beat the base" in fit.message
    assert torch.corrcoef(torch.stack([fit.weights[0], torch.arange(CHANNELS)])).isnan()[0, 1]  # all equal
    assert torch.equal(fit.forced().weights, fit.fitted)


def test_opposite_repeats_are_called_contradictory():
    data, share = judged_by(np.ones(CHANNELS), 40, seed=3)
    judged = data.judged
    turned = dataclasses.replace(judged, votes_a=1 - judged.votes_a, votes_b=1 - judged.votes_b)
    triplets = np.concatenate([judged.images, turned.images])
    answers = Answers.of(triplets, np.concatenate([share, 1 - share]))
    fit = fit_differences(Differences(answers.judged(), np.concatenate([data.x, data.x])), [EQUAL])
    assert (fit.verdict, fit.contradicting) == ("contradictory", 80)
    assert "80 of them contradict each other" in fit.message


def test_too_few_judgements_keep_the_base():
    data, _ = judged_by(SPARSE, LEAST - 1, seed=4)
    fit = fit_differences(data, [EQUAL])
    assert (fit.verdict, fit.expected, fit.forecast) == ("too few", None, None)
    assert "too few to tell" in fit.message
    assert fit.weights.isfinite().all()
    cannot_say = Answers.of([(0, 1, 2)] * 20, [0.5] * 20)
    assert fit_differences(Differences(cannot_say.judged(), data.x[[0] * 20]), [EQUAL]).verdict == "too few"


def test_neither_the_order_of_judgements_nor_the_sides_matter():
    data, share = judged_by(SPARSE, 60, seed=5)
    prior = HeadPrior("base", torch.linspace(1, 2, CHANNELS))
    triplets = data.judged.images
    one = data.solve([np.ones(60, bool)], data.scaled([np.ones(60, bool)], prior.array), [30.0])[0, 0]
    order = np.random.default_rng(0).permutation(60)
    turned = Differences(Answers.of(triplets[order][:, [0, 2, 1]], 1 - share[order]).judged(), -data.x[order])
    other = turned.solve([np.ones(60, bool)], turned.scaled([np.ones(60, bool)], prior.array), [30.0])[0, 0]
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("images", [12, 400])
def test_no_reference_that_is_held_out_is_trained_on(images):
    data, _ = judged_by(SPARSE, 80, seed=6, images=images)
    rounds = make_rounds(data.judged, seed=0)
    held_out = np.sum([one.held_out for one in rounds.rounds], axis=0)
    assert (held_out <= 1).all()
    assert held_out.mean() > 0.9
    for one in rounds.rounds:
        references = data.judged.images[one.held_out, 0]
        assert not np.isin(data.judged.images[one.trained], references).any()
        if images == 400:  # many small groups of connected images stay whole, and no judgement is lost
            assert (one.trained ^ one.held_out).all()


def test_agreement_is_two_afc():
    rng = np.random.default_rng(0)
    logits, share = rng.integers(-1, 2, 50).astype(float), rng.random(50)
    expected = two_afc(torch.from_numpy(logits), torch.zeros(50), torch.from_numpy(share))
    np.testing.assert_allclose(agreement(logits, share), expected)


def test_judges_get_heads_of_their_own():
    other = np.roll(SPARSE, 5)
    parts = [judged_by(weights, 150, seed=7 + place) for place, weights in enumerate((SPARSE, other))]
    triplets = np.concatenate([part[0].judged.images + 200 * place for place, part in enumerate(parts)])
    answers = Answers.of(triplets, np.concatenate([part[1] for part in parts]), None, ["ann"] * 150 + ["bob"] * 150)
    data = Differences(answers.judged(), np.concatenate([part[0].x for part in parts]))
    fit = fit_differences(data, [EQUAL], by_judge=True)
    assert (fit.judges, fit.weights.shape) == (("ann", "bob"), (3, CHANNELS))
    assert fit.judge_strength is not None
    assert math.isfinite(fit.judge_strength)
    for number, weights in enumerate((SPARSE, other), start=1):
        held_out, share = judged_by(weights, 2000, seed=20 + number)
        pooled, own = (((held_out.x @ fit.weights[row].numpy() > 0) == share).mean() for row in (0, number))
        assert own > pooled
        assert fit.judge_expected[fit.judges[number - 1]].accuracy.value > 0.6


def test_priors_are_the_base_and_equal_weights():
    backbone = Backbone("alexnet", pretrained=False, seed=0)
    assert [prior.name for prior in priors_of(PerceptualMetric(backbone))] == ["base"]
    weights = torch.rand(4, 1152, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [2], [3], [100]])
    mean, equal = priors_of(PerceptualMetric(backbone, weights))
    assert (mean.name, equal.name) == ("mean of the contexts", "equal weights")
    rows = weights / weights.mean(dim=1, keepdim=True)
    torch.testing.assert_close(mean.weights, rows.mean(dim=0))


def test_choosing_among_many_settings_is_not_rewarded():
    """With random settings the best one looks better than chance; the accuracy to expect does not."""
    rng = np.random.default_rng(0)
    values, looks = [], []
    for _ in range(40):
        agreeing = rng.integers(0, 2, (40, 12)).astype(float)
        loss = 1 - agreeing + 1e-3 * rng.random((40, 12))
        held_out = HeldOut(agreeing, loss, np.full(40, 0.5), np.ones(40), np.arange(40), np.arange(120).reshape(40, 3))
        best = int(loss.sum(axis=0).argmin())
        looks.append(agreeing[:, best].mean())
        values.append(expect(held_out, best).accuracy.value)
    assert np.mean(looks) > 0.6
    assert np.mean(values) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("votes", [20, 100])
def test_intervals_of_a_share_cover_it(votes):
    """Judgements of a setting that agrees with 80 % of them: the interval holds 80 % in about 95 % of samples."""
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        agreeing = (rng.random((votes, 1)) < 0.8).astype(float)
        images = np.arange(3 * votes).reshape(votes, 3)
        held_out = HeldOut(agreeing, 1 - agreeing, agreeing[:, 0], np.ones(votes), np.arange(votes), images)
        found = expect(held_out, 0).accuracy
        covered.append(found.low <= 0.8 <= found.high)
    assert 0.92 <= np.mean(covered) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "images"), [(20, 200), (60, 200), (60, 30)])
def test_the_accuracy_to_expect_is_that_on_other_images(rows, images):
    """Over simulated judges, the interval holds the accuracy on thousands of other judgements in 95 % of cases."""
    covered, errors = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        weights = rng.random(CHANNELS) ** 4
        data, _ = judged_by(weights, rows, seed=10_000 + seed, noise=0.1, images=images)
        fit = fit_differences(data, [EQUAL], seed=seed)
        others, share = judged_by(weights, 3000, seed=20_000 + seed, noise=0.1)
        true = ((others.x @ fit.fitted[0].numpy() > 0) == share).mean()
        assert fit.expected is not None
        covered.append(fit.expected.accuracy.low <= true <= fit.expected.accuracy.high)
        errors.append(fit.expected.accuracy.value - true)
    assert 0.88 <= np.mean(covered) <= 1
    assert abs(np.mean(errors)) < 0.04


def test_a_forecast_follows_the_curve():
    rising = [CurvePoint(n, 0.5 + 0.4 * n / (n + 30)) for n in (10, 20, 40, 80)]
    flat = [CurvePoint(n, 0.8) for n in (10, 20, 40, 80)]
    up, level = (forecast(points, base, 100, 400) for points, base in ((rising, 0.5), (flat, 0.8)))
    assert up.more == 40
    actual = 0.4 * (140 / 170 - 100 / 130)
    assert up.gain.low <= actual <= up.gain.high
    assert up.gain.value == pytest.approx(actual, abs=0.02)
    assert level.gain.value < 0.01
