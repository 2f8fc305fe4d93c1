"""Losses against torch's own and the paper's rule for the sync loss."""

import torch
from torch.nn import functional as F

from fastdps.metric.scores import two_afc
from fastdps.training.losses import cross_entropy, expected_error, sync_loss


def test_cross_entropy_per_image_and_context():
    logits, votes = torch.randn(4, 15, 3), torch.rand(15, 3)
    expected = [
        [F.binary_cross_entropy(torch.sigmoid(logits[n, :, k]), votes[:, k]) for k in range(3)] for n in range(4)
    ]
    assert torch.allclose(cross_entropy(logits, votes), torch.tensor(expected), atol=1e-6)


def test_sync_loss_acts_at_or_below_chance():
    d0, d1, votes = torch.rand(4, 15, 3), torch.rand(4, 15, 3), torch.ones(15, 3)
    loss = sync_loss(d0, d1, votes, accuracy=torch.tensor([0.49, 0.5, 0.51]))
    expected = 10 * cross_entropy(d0 - d1, votes)
    assert torch.equal(loss[:, :2], expected[:, :2])
    assert (loss[:, 2] == 0).all()


def test_expected_error_is_that_of_choices_drawn_from_the_judge():
    generator = torch.Generator().manual_seed(0)
    logits, votes = torch.randn(1, 3, 2, generator=generator), torch.rand(3, 2, generator=generator)
    chosen = torch.rand(40_000, 3, 2, generator=generator) < logits.sigmoid()
    voted = torch.rand(40_000, 3, 2, generator=generator) < votes
    drawn = (chosen != voted).float().mean(dim=(0, 1))
    assert (expected_error(logits, votes)[0] - drawn).abs().max() < 5 * 0.5 / (3 * 40_000) ** 0.5


def test_expected_error_becomes_one_minus_the_accuracy():
    d0, d1, votes = torch.rand(4, 15, 3), torch.rand(4, 15, 3), torch.rand(15, 3)
    accuracy = two_afc(d0, d1, votes).mean(dim=1)
    assert torch.allclose(expected_error(1e8 * (d0 - d1), votes), 1 - accuracy, atol=1e-5)
