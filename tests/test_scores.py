"""Scores against hand-computed cases and scikit-learn."""

import torch
from sklearn.metrics import accuracy_score

from fastdps.scores import agreement, improved, prefers_second, two_afc


def test_two_afc_by_hand():
    d0 = torch.tensor([0.1, 0.9, 0.5, 0.1, 0.9])
    d1 = torch.tensor([0.2, 0.3, 0.5, 0.2, 0.3])
    votes = torch.tensor([0.0, 1.0, 0.8, 0.4, 0.4])
    assert torch.allclose(two_afc(d0, d1, votes), torch.tensor([1.0, 1.0, 0.5, 0.6, 0.4]))


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
    assert torch.allclose(agreement(chosen, votes, of=200), two_afc(d0, d1, votes).sum(dim=0))


def test_swapping_the_pair_swaps_the_votes():
    d0, d1, votes = torch.rand(3, 100)
    assert torch.allclose(two_afc(d0, d1, votes), two_afc(d1, d0, 1 - votes))


def test_improved_is_strict():
    assert improved(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([0.5, 0.6, 0.4])).tolist() == [False, True, False]
