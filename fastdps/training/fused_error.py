"""The expected error of a logistic judge on labelled pairs, with its gradient, in one pass over the pairs.

    distances (n, D, K) --chunks of images that fit into the cache--> loss, accuracy (n, K), gradients (n, D, K), (n, K)

Heads of many contexts spend most of a step on the pairs (n, T, K), element by element. Automatic differentiation reads
and writes them about forty times, each time from main memory.

Shapes: n images, D distorted versions of each, T pairs of them, K contexts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: On a CPU, bytes of pairs that are computed at a time.
CHUNK_BYTES = 1 << 19


def fused_expected_error(
    distances: Tensor, log_temperature: Tensor, first: Tensor, second: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `expected_error` of `LogisticJudge` on labels, and the accuracy.

    Args:
        distances: Distances (n, D, K).
        log_temperature: Logarithms of the temperatures of the judge, (K,).
        first: Index of the first version of each pair, int64 (T,).
        second: Index of the second version, int64 (T,).
        labels: 1 where the second version must be closer, otherwise 0, (T, K).

    Returns:
        The loss (n, K), with gradients for distances and temperatures, and the accuracy (n, K), without.

    Example:
        >>> d = torch.tensor([[[0.2], [0.5]]])
        >>> pair = torch.tensor([0]), torch.tensor([1])
        >>> loss, accuracy = fused_expected_error(d, torch.zeros(1), *pair, torch.zeros(1, 1))
        >>> accuracy
        tensor([[1.]])
    """
    loss, accuracy = _FusedError.apply(distances, log_temperature, first, second, 1 - 2 * labels)
    return loss, accuracy


class _FusedError(torch.autograd.Function):
    """Computes the gradients of each loss with the losses: they are independent of what is done with the losses."""

    @staticmethod
    def forward(
        ctx: Any, distances: Tensor, log_temperature: Tensor, first: Tensor, second: Tensor, signs: Tensor
    ) -> tuple[Tensor, Tensor]:
        n, _, contexts = distances.shape
        factor = signs * log_temperature.exp()  # (T, K): times d0 - d1 it is the logit of an error
        loss, sign, slope = (distances.new_empty(n, contexts) for _ in range(3))
        gradient = torch.zeros_like(distances)
        chunk = max(1, n)
        if distances.device.type == "cpu":
            chunk = max(1, CHUNK_BYTES // (factor.numel() * factor.element_size()))
        for start in range(0, n, chunk):
            own = slice(start, start + chunk)
            d = distances[own]
            logits = d.index_select(1, first).sub_(d.index_select(1, second)).mul_(factor)
            error = logits.sigmoid()
            torch.mean(error, 1, out=loss[own])
            torch.mean(logits.sign(), 1, out=sign[own])
            by_logit = error.addcmul_(error, error, value=-1)  # the derivative of the sigmoid
            torch.mean(logits.mul_(by_logit), 1, out=slope[own])
            by_difference = by_logit.mul_(factor)
            gradient[own].index_add_(1, first, by_difference).index_add_(1, second, by_difference, alpha=-1)
        ctx.save_for_backward(gradient.div_(max(1, len(first))), slope)
        accuracy = 0.5 - 0.5 * sign
        ctx.mark_non_differentiable(accuracy)
        return loss, accuracy

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        gradient, slope = ctx.saved_tensors
        return gradient * outputs[0][:, None], (slope * outputs[0]).sum(dim=0), None, None, None
