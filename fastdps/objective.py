"""What training minimises, per context, so that contexts trained together learn as if each were alone."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

#: Weight of the sync loss against the judge's (Pihlgren et al. 2023).
SYNC_WEIGHT = 10.0


def judge_loss(logits: Tensor, votes: Tensor) -> Tensor:
    """Binary cross-entropy of the judge: logits (n, pairs, K) and votes (pairs, K) to (n, K), mean over pairs.

    `votes` is the probability that 1 is closer.
    """
    return F.binary_cross_entropy_with_logits(logits, votes.expand_as(logits), reduction="none").mean(dim=1)


def sync_loss(d0: Tensor, d1: Tensor, votes: Tensor, accuracy: Tensor) -> Tensor:
    """The paper's sync loss: 10 x BCE(sigmoid(d0 - d1), votes) for contexts whose batch accuracy (K,) is <= 0.5.

    A judge that is free to flip its sign can teach the metric the reverse order; this pulls it back without the judge.
    Shapes as in `judge_loss`; returns (n, K).
    """
    return SYNC_WEIGHT * judge_loss(d0 - d1, votes) * (accuracy <= 0.5)
