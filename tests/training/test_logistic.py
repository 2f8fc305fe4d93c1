"""The convex fit: compared with scikit-learn, with finite differences, and with the conditions of a minimum."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fastdps.runtime.processes import join_processes
from fastdps.training.logistic import Judged, Uses, _Objective, fit_heads, unadapted_scales
from helpers.judged_images import planted

CHANNELS = 12


@pytest.fixture(scope="module")
def processes():
    with join_processes() as joined:
        yield joined


@pytest.fixture(scope="module")
def problem():
    weights = {"one": torch.linspace(0, 2, CHANNELS), "two": torch.linspace(2, 0, CHANNELS)}
    judged, moments = planted(weights, 150, 20, noise=0.2)
    votes = np.random.default_rng(0).integers(1, 5, len(judged))
    return dataclasses.replace(judged, votes_a=judged.votes_a * votes, votes_b=judged.votes_b * votes), moments


def uses_of(judged, processes):
    return Uses.of([judged.judge == 0, judged.judge == 1, np.ones(len(judged), bool)], processes.device)


def moments_matrix(moments):
    return torch.cat([block for _, block in moments.blocks()]).numpy().astype(np.float64)


def loss_of(w, judged, moments, mask):
    """The weighted cross-entropy of one head, by numpy."""
    mean = moments_matrix(moments)
    logit = ((mean[judged.first] - mean[judged.second]) @ w)[mask]
    share, votes = judged.share[mask], judged.votes[mask]
    return (votes * (np.logaddexp(0, logit) - share * logit)).sum() / votes.sum()


def test_without_bounds_the_loss_is_that_of_scikit_learn(problem, processes):
    judged, moments = problem
    data, uses = Judged(judged, moments, processes), uses_of(judged, processes)
    strength = 0.05
    zero = torch.zeros(3, CHANNELS)
    fit = fit_heads(data, uses, zero, torch.full((3,), strength), iterations=500, least=-np.inf)
    mean, penalty = moments_matrix(moments), strength * data.curvature.mean
    x = mean[judged.first] - mean[judged.second]
    for head, mask in enumerate([judged.judge == 0, judged.judge == 1, np.ones(len(judged), bool)]):
        votes = judged.votes[mask].sum()
        oracle = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-10, max_iter=10_000)
        oracle.fit(
            np.concatenate([x[mask], x[mask]]),
            np.repeat([0, 1], mask.sum()),
            np.concatenate([judged.votes_a[mask], judged.votes_b[mask]]) / votes,
        )
        expected = oracle.coef_[0]
        own = fit.weights[head].double().numpy()
        objectives = [loss_of(w, judged, moments, mask) + penalty / 2 * w @ w for w in (own, expected)]
        assert objectives[0] == pytest.approx(objectives[1], abs=1e-6)
        assert loss_of(own, judged, moments, mask) == pytest.approx(loss_of(expected, judged, moments, mask), abs=1e-4)


def test_the_gradient_is_that_of_finite_differences(problem, processes):
    judged, moments = problem
    data, uses = Judged(judged, moments, processes), uses_of(judged, processes)
    prior = torch.rand(3, CHANNELS, generator=torch.Generator().manual_seed(0)) + 0.5
    objective = _Objective(data, uses, prior, torch.tensor([0.0, 0.1, 2.0]))
    x = objective.scaled(prior * 1.3)
    _, gradient = objective.value(x)
    for place in range(0, len(x), 5):
        step = np.zeros_like(x)
        step[place] = 1e-2
        slope = (objective.value(x + step)[0] - objective.value(x - step)[0]) / 2e-2
        assert gradient[place] == pytest.approx(slope, rel=2e-2, abs=2e-6)


def test_the_bounded_fit_satisfies_the_conditions_of_a_minimum(problem, processes):
    judged, moments = problem
    data, uses = Judged(judged, moments, processes), uses_of(judged, processes)
    prior = torch.full((3, CHANNELS), 0.3)
    fit = fit_heads(data, uses, prior, torch.full((3,), 1e-3), iterations=500)
    assert (fit.weights >= 0).all()
    at_bound = (fit.weights == 0).numpy().ravel()
    assert 0 < at_bound.sum() < at_bound.size
    objective = _Objective(data, uses, prior, torch.full((3,), 1e-3))
    _, gradient = objective.value(objective.scaled(fit.weights))
    assert (np.abs(gradient[~at_bound]) < 1e-4).all()
    assert (gradient[at_bound] > -1e-4).all()


def test_heads_together_are_the_heads_alone(problem, processes):
    judged, moments = problem
    data, uses = Judged(judged, moments, processes), uses_of(judged, processes)
    prior = torch.full((3, CHANNELS), 0.3)
    strengths = torch.tensor([0.1, 1.0, 0.01])
    together = fit_heads(data, uses, prior, strengths, iterations=300)
    for head, mask in enumerate([judged.judge == 0, judged.judge == 1, np.ones(len(judged), bool)]):
        alone = fit_heads(
            data, Uses.of([mask], processes.device), prior[:1], strengths[head : head + 1], iterations=300
        )
        torch.testing.assert_close(together.weights[head], alone.weights[0], rtol=2e-2, atol=2e-3)


def test_the_order_of_a_and_b_does_not_matter(problem, processes):
    judged, moments = problem
    turned = dataclasses.replace(
        judged, first=judged.second, second=judged.first, votes_a=judged.votes_b, votes_b=judged.votes_a
    )
    fits = [
        fit_heads(
            Judged(one, moments, processes),
            uses_of(one, processes),
            torch.full((3, CHANNELS), 0.3),
            torch.ones(3),
            iterations=200,
        ).weights
        for one in (judged, turned)
    ]
    torch.testing.assert_close(*fits, rtol=1e-3, atol=1e-4)


def test_strong_priors_keep_the_prior_and_weak_ones_explain_the_judgements(problem, processes):
    judged, moments = problem
    data, uses = Judged(judged, moments, processes), uses_of(judged, processes)
    prior = torch.full((3, CHANNELS), 0.3)
    strong, weak = (
        fit_heads(data, uses, prior, torch.full((3,), strength), iterations=300).weights for strength in (1e6, 1e-4)
    )
    torch.testing.assert_close(strong, prior, rtol=1e-3, atol=1e-4)
    assert (data.losses(weak, uses) < data.losses(strong, uses) - 0.01).all()


def test_losses_are_those_of_a_plain_computation(problem, processes):
    judged, moments = problem
    weights = torch.rand(3, CHANNELS, generator=torch.Generator().manual_seed(1))
    found = Judged(judged, moments, processes).losses(weights, uses_of(judged, processes))
    masks = [judged.judge == 0, judged.judge == 1, np.ones(len(judged), bool)]
    expected = [loss_of(w.double().numpy(), judged, moments, mask) for w, mask in zip(weights, masks, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_scale_of_the_unadapted_metric_is_a_regression_on_its_distances(problem, processes):
    judged, moments = problem
    data, uses = Judged(judged, moments, processes), uses_of(judged, processes)
    d = moments_matrix(moments).sum(axis=1)
    x = (d[judged.first] - d[judged.second])[:, None]
    oracle = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12)
    oracle.fit(np.concatenate([x, x]), np.repeat([0, 1], len(x)), np.concatenate([judged.votes_a, judged.votes_b]))
    assert unadapted_scales(data, uses)[2].item() == pytest.approx(oracle.coef_[0, 0], rel=1e-4)


def test_the_scale_stays_positive_for_judges_that_reverse_the_metric(processes):
    judged, moments = planted({"one": torch.ones(CHANNELS)}, 100, 15)
    turned = dataclasses.replace(judged, votes_a=judged.votes_b, votes_b=judged.votes_a)
    everything = Uses.of([np.ones(len(judged), bool)], processes.device)
    reversed_scale, scale = (
        unadapted_scales(Judged(one, moments, processes), everything).item() for one in (turned, judged)
    )
    assert 0 < reversed_scale < 0.1 * scale
