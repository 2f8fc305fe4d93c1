"""Scores against hand-computed cases and scikit-learn."""

import lpips
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, average_precision_score

from fastdps.metric.scores import agreeing_votes, average_precision, human_ceiling, improved, prefers_second, two_afc


def test_two_afc_by_hand():
    d0 = torch.tensor([0.1, 0.9, 0.5, 0.1, 0.9])
    d1 = torch.tensor([0.2, 0.3, 0.5, 0.2, 0.3])
    votes = torch.tensor([0.0, 1.0, 0.8, 0.4, 0.4])
    assert torch.allclose(two_afc(d0, d1, votes), torch.tensor([1.0, 1.0, 0.5, 0.6, 0.4]))


def test_two_afc_of_several_contexts_by_hand():
    """Rows are triplets, columns contexts: both orders, and a tie, which counts 0.5 for any votes."""
    d0 = torch.tensor([[0.1, 0.3, 0.2], [0.0, 0.5, 0.9]])
    d1 = torch.tensor([[0.2, 0.1, 0.2], [0.0, 0.6, 0.1]])
    votes = torch.tensor([[0.2], [1.0]])
    expected = torch.tensor([[0.8, 0.2, 0.5], [0.5, 0.0, 1.0]])
    assert torch.allclose(two_afc(d0, d1, votes), expected)


def test_a_distance_that_is_no_number_is_no_tie():
    d0, d1 = torch.tensor([torch.nan, 0.1, 0.5]), torch.tensor([0.5, torch.nan, 0.5])
    assert two_afc(d0, d1, torch.tensor(1.0)).nan_to_num(7.0).tolist() == [7, 7, 0.5]


def test_with_labels_it_is_the_accuracy():
    generator = torch.Generator().manual_seed(0)
    d0, d1 = torch.rand(2, 500, generator=generator)
    labels = (torch.rand(500, generator=generator) < 0.5).float()
    expected = accuracy_score(labels.numpy(), (d1 < d0).float().numpy())
    assert abs(two_afc(d0, d1, labels).mean().item() - expected) < 1e-6


def test_agreement_counts_choices():
    d0, d1 = torch.rand(2, 200, 3)
    votes = torch.tensor([0.0, 0.25, 1.0])
    chosen = prefers_second(d0, d1).sum(dim=0)
    assert torch.allclose(agreeing_votes(chosen, votes, of=200), two_afc(d0, d1, votes).sum(dim=0))


def test_swapping_the_pair_swaps_the_votes():
    d0, d1, votes = torch.rand(3, 100)
    assert torch.allclose(two_afc(d0, d1, votes), two_afc(d1, d0, 1 - votes))


def test_improved_is_strict():
    assert improved(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.5, 0.6, 0.4])).tolist() == [False, True, False]


def test_human_ceiling_by_hand():
    assert human_ceiling(torch.tensor([0.0, 1.0, 0.5, 0.8])).tolist() == pytest.approx([1.0, 1.0, 0.5, 0.68])


def sklearn_average_precision(distances, votes):
    """Count every pair twice: as positive, weighted by its votes, and as negative, weighted by the others."""
    truth = np.r_[np.ones(len(votes)), np.zeros(len(votes))]
    return average_precision_score(truth, -np.r_[distances, distances], sample_weight=np.r_[votes, 1 - votes])


JUDGED_PAIRS = st.lists(
    # Few different distances, so that many are equal; votes of three people.
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.0000001]), st.integers(0, 3)),
    min_size=1,
    max_size=30,
).filter(lambda pairs: any(votes for _, votes in pairs))


@given(JUDGED_PAIRS)
def test_average_precision_is_that_of_scikit_learn(pairs):
    distances, votes = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    votes /= 3
    ours = average_precision(torch.from_numpy(distances)[:, None], torch.from_numpy(votes))
    assert ours.dtype == torch.float64
    assert ours.item() == pytest.approx(sklearn_average_precision(distances, votes), abs=1e-9)


@pytest.mark.parametrize("levels", [5, 40, None], ids=lambda levels: f"{levels} distances")
def test_average_precision_of_many_contexts(levels):
    rng = np.random.default_rng(0)
    votes = rng.binomial(3, 0.4, 500) / 3
    distances = rng.random((500, 9)).astype(np.float32) - 0.3 * votes[:, None].astype(np.float32)
    if levels:
        distances = (distances * levels).round()
    ours = average_precision(torch.from_numpy(distances), torch.from_numpy(votes).float())
    expected = [sklearn_average_precision(column, votes.astype(np.float32).astype(float)) for column in distances.T]
    assert ours.tolist() == pytest.approx(expected, abs=1e-9)
    assert ours.unique().numel() == 9


def test_average_precision_by_hand():
    """Retrieved: one pair, all votes for "same"; two at one distance, with 1 vote of 2; one more with none."""
    distances = torch.tensor([[0.5], [0.1], [0.5], [0.9]])
    votes = torch.tensor([0.5, 1.0, 0.0, 0.0])
    # recall 1/1.5 at precision 1, then 1 at precision 1.5/3
    assert average_precision(distances, votes).item() == pytest.approx((1 * 1 + 0.5 * 0.5) / 1.5)


def test_average_precision_without_any_same_is_zero_and_with_nan_is_nan():
    distances = torch.tensor([[0.1, 0.1], [0.2, torch.nan]])
    assert average_precision(distances, torch.zeros(2)).nan_to_num(7.0).tolist() == [0, 7]
    assert average_precision(distances, torch.ones(2)).nan_to_num(7.0).tolist() == [1, 7]


def test_lpips_averages_precision_under_its_envelope():
    """The figures of the docstring about LPIPS's evaluation, computed with its own function."""
    votes = np.array([0.0, 1.0, 1.0, 0.0])
    found = votes.cumsum()
    theirs = lpips.voc_ap(found / found[-1], found / np.arange(1, 5))
    assert theirs == pytest.approx(0.667, abs=5e-4)
    ours = average_precision(torch.arange(4.0)[:, None], torch.from_numpy(votes)).item()
    assert ours == pytest.approx(0.583, abs=5e-4)
