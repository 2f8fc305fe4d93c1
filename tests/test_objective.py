"""Losses against torch's own and the paper's rule for the sync loss."""

import torch
from torch.nn import functional as F

from fastdps.objective import judge_loss, sync_loss


def test_judge_loss_is_cross_entropy_per_image_and_context():
    logits, votes = torch.randn(4, 15, 3), torch.rand(15, 3)
    expected = [
        [F.binary_cross_entropy(torch.sigmoid(logits[n, :, k]), votes[:, k]) for k in range(3)] for n in range(4)
    ]
    assert torch.allclose(judge_loss(logits, votes), torch.tensor(expected), atol=1e-6)


def test_sync_loss_acts_at_or_below_chance():
    d0, d1, votes = torch.rand(4, 15, 3), torch.rand(4, 15, 3), torch.ones(15, 3)
    loss = sync_loss(d0, d1, votes, accuracy=torch.tensor([0.49, 0.5, 0.51]))
    expected = 10 * judge_loss(d0 - d1, votes)
    assert torch.equal(loss[:, :2], expected[:, :2])
    assert (loss[:, 2] == 0).all()
