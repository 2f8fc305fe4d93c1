"""Losses, one per context, so that contexts trained together learn as if each were trained separately."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

#: Weight of the sync loss against the judge's (Pihlgren et al. 2023).
SYNC_WEIGHT = 10.0


def cross_entropy(logits: Tensor, votes: Tensor) -> Tensor:
    """Compute the binary cross-entropy of the judge, as LPIPS trains.

    Args:
        logits: Logits of P(1 is closer), (n, pairs, K).
        votes: Probability that 1 is closer, (pairs, K) or (n, pairs, K).

    Returns:
        The mean over pairs, (n, K).
    """
    return F.binary_cross_entropy_with_logits(logits, votes.expand_as(logits), reduction="none").mean(dim=1)


def expected_error(logits: Tensor, votes: Tensor) -> Tensor:
    """Compute the probability that a choice drawn from the judge disagrees with a vote; shapes as in `cross_entropy`.

    As the temperature grows it approaches one minus the accuracy. Non-negative heads cannot get every pair of a
    context right. The pairs that cannot be learned dominate the cross-entropy, but not this loss.
    """
    return (votes + (1 - 2 * votes) * logits.sigmoid()).mean(dim=1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "expected_error": expected_error,
}


def sync_loss(d0: Tensor, d1: Tensor, votes: Tensor, accuracy: Tensor) -> Tensor:
    """Compute the paper's sync loss: 10 x BCE(sigmoid(d0 - d1), votes) for contexts with a batch accuracy (K,) <= 0.5.

    A judge that can flip its sign can teach the metric the reverse order; this loss bypasses the judge. Shapes as in
    `cross_entropy`; returns (n, K).
    """
    return SYNC_WEIGHT * cross_entropy(d0 - d1, votes) * (accuracy <= 0.5)
