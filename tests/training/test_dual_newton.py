"""The solver in as many dimensions as judgements, compared with L-BFGS-B, with bounds by scipy, and with a grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from fastdps.training.answers import Answers
from fastdps.training.differences import Differences
from fastdps.training.dual_newton import cross_entropy, mean_square, prior_scale, sigmoid, solve_path

CHANNELS = 40
STRENGTHS = (math.inf, 100.0, 10.0, 1.0, 0.1)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, CHANNELS)) * np.geomspace(1, 0.05, CHANNELS)
    truth = rng.random(CHANNELS)
    share = np.clip(np.round(sigmoid(4 * x @ truth) * 3 + rng.normal(0, 0.7, 30)), 0, 3) / 3
    return x, share, rng.integers(1, 4, 30).astype(float), np.full(CHANNELS, 0.7)


def objective(weights, x, share, votes, prior, penalty):
    logits = x @ weights
    value = (votes * cross_entropy(logits, share)).sum() + penalty / 2 * np.square(weights - prior).sum()
    return value, x.T @ (votes * (sigmoid(logits) - share)) + penalty * (weights - prior)


def test_the_minimum_is_that_of_scipy(problem):
    x, share, votes, prior = problem
    unit = mean_square(x)
    found = solve_path(x, share, votes, prior, STRENGTHS, unit)
    np.testing.assert_array_equal(found[0], prior)
    for weights, strength in zip(found[1:], STRENGTHS[1:], strict=True):
        penalty = strength * unit
        arguments = (x, share, votes, prior, penalty)
        bounds = [(0, None)] * CHANNELS
        options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000, "maxfun": 50_000}
        oracle = minimize(objective, prior, arguments, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        assert (weights >= 0).all()
        assert objective(weights, *arguments)[0] <= oracle.fun + 1e-7
        np.testing.assert_allclose(weights, oracle.x, atol=2e-3)
    assert (found[-1] == 0).any()  # the bounds matter


def test_the_conditions_of_a_minimum_hold(problem):
    x, share, votes, prior = problem
    unit = mean_square(x)
    for weights, strength in zip(solve_path(x, share, votes, prior, STRENGTHS[1:], unit), STRENGTHS[1:], strict=True):
        _, gradient = objective(weights, x, share, votes, prior, strength * unit)
        assert (np.abs(gradient[weights > 0]) < 1e-4).all()
        assert (gradient[weights == 0] > -1e-4).all()


def test_many_judgements_are_solved_by_lbfgs_to_the_same_minimum(problem, monkeypatch):
    x, share, votes, prior = problem
    triplets = np.stack([np.arange(30), np.arange(30, 60), np.arange(60, 90)], axis=1)
    data = Differences(Answers.of(triplets, share, votes).judged(), x)
    seen = [np.ones(30, bool), np.arange(30) < 20]
    exact = data.solve(seen, np.stack([prior, prior]), STRENGTHS[:3])
    monkeypatch.setattr("fastdps.training.differences.MOST_DUAL", 10)
    by_lbfgs = data.solve(seen, np.stack([prior, prior]), STRENGTHS[:3])
    np.testing.assert_allclose(by_lbfgs, exact, atol=5e-3)


def test_the_scale_of_a_prior_is_the_best_on_a_grid(problem):
    x, share, votes, prior = problem
    logits = x @ prior
    unit = 1 / np.sqrt((votes * logits**2).sum() / votes.sum())
    grid = np.geomspace(0.05, 100, 2000)
    losses = [(votes * cross_entropy(t * unit * logits, share)).sum() + 0.5 * math.log(t) ** 2 for t in grid]
    assert prior_scale(logits, share, votes) == pytest.approx(grid[int(np.argmin(losses))] * unit, rel=0.01)


@pytest.mark.parametrize("sign", [1, -1])
def test_few_judgements_that_all_agree_give_a_finite_scale(sign):
    logits = np.array([0.5, 1.0, 2.0])
    scale = prior_scale(sign * logits, np.ones(3), np.ones(3))
    assert 0.05 / 1.4 < scale < 20
    assert torch.isfinite(torch.tensor(scale))


def test_no_judgements_give_the_prior():
    empty = np.zeros((0, CHANNELS))
    prior = np.full(CHANNELS, 0.3)
    assert prior_scale(np.zeros(0), np.zeros(0), np.zeros(0)) == 1
    np.testing.assert_array_equal(solve_path(empty, np.zeros(0), np.zeros(0), prior, [1.0], 1.0)[0], prior)
