"""Heads of judges: strengths by cross-validation, on judges whose weights are known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from fastdps.contexts.judgements import JudgedPairs, image_folds
from fastdps.runtime.processes import join_processes
from fastdps.training.judge_heads import DEFAULT_STRENGTH, STRENGTHS, fit_judge_heads
from fastdps.training.logistic import Judged
from helpers.judged_images import planted

CHANNELS = 16
ONE = torch.cat([torch.ones(4), torch.zeros(CHANNELS - 4)])
OTHER = torch.cat([torch.zeros(CHANNELS - 8), 30 * torch.ones(8)])


@pytest.fixture(scope="module")
def processes():
    with join_processes() as joined:
        yield joined


def agreement(weights, judged: JudgedPairs, moments) -> float:
    d = moments.distances(weights[None])[:, 0].numpy()
    return float(((d[judged.first] > d[judged.second]) == (judged.share > 0.5)).mean())


def fit(judged, moments, processes, **options):
    folds = image_folds(len(judged.ids), 5, seed=0)
    return fit_judge_heads(judged, Judged(judged, moments, processes), folds, processes, **options)


def test_the_pooled_head_learns_a_judge_and_serves_other_images(processes):
    judged, moments = planted({"one": OTHER}, 400, 30, noise=0.1)
    heads = fit(judged, moments, processes)
    unseen, their_moments = planted({"one": OTHER}, 1000, 30, seed=1)
    before, after = (agreement(w, unseen, their_moments) for w in (torch.ones(CHANNELS), heads.weights[0]))
    assert after > 0.9 > before + 0.1
    assert heads.weights.shape == (1, CHANNELS)
    assert set(heads.pooled.losses) == set(STRENGTHS)
    assert heads.pooled.losses[heads.pooled.strength] == min(heads.pooled.losses.values())


def test_judgements_without_information_leave_the_metric_nearly_as_it_is(processes):
    truth = {"one": torch.ones(CHANNELS)}
    judged, moments = planted(truth, 60, 30)
    unseen, their_moments = planted(truth, 500, 30, seed=1)
    kept = []
    for seed in range(5):
        votes = np.random.default_rng(seed).permutation(judged.votes_b)
        heads = fit(dataclasses.replace(judged, votes_a=1 - votes, votes_b=votes), moments, processes)
        kept.append(agreement(heads.weights[0], unseen, their_moments))
    assert np.mean(kept) > 0.8


def test_a_given_strength_is_used_without_cross_validation(processes):
    judged, moments = planted({"one": OTHER}, 100, 20)
    heads = fit(judged, moments, processes, strength=0.5)
    assert heads.pooled.strength == 0.5
    assert heads.pooled.losses == {}


def test_too_few_judgements_for_cross_validation_take_the_default(processes):
    judged, moments = planted({"one": OTHER}, 3, 10)
    heads = fit(judged, moments, processes)
    assert heads.pooled.strength == DEFAULT_STRENGTH
    assert heads.pooled.losses == {}


def test_people_who_differ_get_heads_of_their_own(processes):
    judged, moments = planted({"one": ONE, "other": OTHER}, 300, 30, noise=0.05)
    heads = fit(judged, moments, processes, by_judge=True)
    assert heads.weights.shape == (3, CHANNELS)
    assert heads.judges is not None
    assert heads.judges.strength < math.inf
    unseen, their_moments = planted({"one": ONE, "other": OTHER}, 500, 30, seed=1)
    for number in range(2):
        own = unseen.select(unseen.judge == number)
        own = dataclasses.replace(own, pairs=unseen.pairs, first=unseen.first[unseen.judge == number],
                                  second=unseen.second[unseen.judge == number])  # fmt: skip
        pooled, alone = (agreement(heads.weights[head], own, their_moments) for head in (0, 1 + number))
        assert alone > pooled + 0.02


def test_people_who_agree_share_the_pooled_head_nearly(processes):
    people = {f"person {number}": OTHER for number in range(6)}
    judged, moments = planted(people, 25, 30, noise=0.25)
    heads = fit(judged, moments, processes, by_judge=True)
    unseen, their_moments = planted({"one": OTHER}, 1000, 30, seed=1)
    pooled = agreement(heads.weights[0], unseen, their_moments)
    for own in heads.weights[1:]:
        assert agreement(own, unseen, their_moments) > pooled - 0.05


def test_a_judge_of_few_votes_stays_nearer_to_the_pooled_head(processes):
    judged, moments = planted({"many": ONE, "few": ONE, "others": OTHER}, 300, 30, noise=0.05)
    few = np.flatnonzero(judged.judge == 1)[8:]
    judged = dataclasses.replace(judged.select(np.setdiff1d(np.arange(len(judged)), few)))
    kept = planted({"many": ONE, "few": ONE, "others": OTHER}, 300, 30, noise=0.05)[0]
    rows = np.setdiff1d(np.arange(len(kept)), few)
    judged = dataclasses.replace(judged, pairs=kept.pairs, first=kept.first[rows], second=kept.second[rows])
    heads = fit(judged, moments, processes, by_judge=True)
    many, of_few = ((heads.weights[head] - heads.weights[0]).norm() for head in (1, 2))
    assert of_few < 0.5 * many


def test_the_progress_is_reported(processes):
    judged, moments = planted({"one": OTHER}, 60, 20)
    seen: list[tuple[str, int]] = []
    heads = fit(judged, moments, processes, by_judge=True, report=lambda what, number, _: seen.append((what, number)))
    assert {what for what, _ in seen} <= {"cross-validation", "pooled head", "heads of judges"}
    assert len(seen) == heads.passes
