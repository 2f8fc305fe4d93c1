"""What training minimises, per context, so that contexts trained together learn as if each were alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

#: Weight of the sync loss against the judge's (Pihlgren et al. 2023).
SYNC_WEIGHT = 10.0


def cross_entropy(logits: Tensor, votes: Tensor) -> Tensor:
    """Binary cross-entropy of the judge, as LPIPS trains: logits (n, pairs, K) and votes (pairs, K) to (n, K).

    `votes` is the probability that 1 is closer; the loss is the mean over pairs.
    """
    return F.binary_cross_entropy_with_logits(logits, votes.expand_as(logits), reduction="none").mean(dim=1)


def expected_error(logits: Tensor, votes: Tensor) -> Tensor:
    """How often a choice drawn from the judge disagrees with a vote; shapes as in `cross_entropy`.

    With a growing temperature this becomes one minus the accuracy. Non-negative heads cannot get every pair of a
    context right, and the cross-entropy spends them on those that are hopeless; this does not.
    """
    return (votes + (1 - 2 * votes) * logits.sigmoid()).mean(dim=1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "expected_error": expected_error,
}


def sync_loss(d0: Tensor, d1: Tensor, votes: Tensor, accuracy: Tensor) -> Tensor:
    """The paper's sync loss: 10 x BCE(sigmoid(d0 - d1), votes) for contexts whose batch accuracy (K,) is <= 0.5.

    A judge that is free to flip its sign can teach the metric the reverse order; this pulls it back without the judge.
    Shapes as in `cross_entropy`; returns (n, K).
    """
    return SYNC_WEIGHT * cross_entropy(d0 - d1, votes) * (accuracy <= 0.5)
