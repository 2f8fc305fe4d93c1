"""Watching that the loss stays a number, without waiting for the device at every step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastdps.errors import TrainingError
from fastdps.loading.spec import Batch


class BadStep(NamedTuple):
    """The first step whose loss was not finite, on which process, its value, and the ids of its samples there."""

    step: int
    rank: int
    loss: float
    ids: list[int]


class LossGuard:
    """Remembers the losses of this process since it was last asked; they stay on the device until then."""

    def __init__(self, device: torch.device, rank: int) -> None:
        self._rank = rank
        self._bad = torch.zeros((), device=device)
        self._recent: list[tuple[int, Tensor, Tensor]] = []

    def add(self, step: int, loss: Tensor, batch: Batch) -> None:
        """Take note of the loss (n, K) of a step."""
        total = loss.sum()
        self._bad += ~total.isfinite()
        self._recent.append((step, total, batch.ids))

    @property
    def bad(self) -> Tensor:
        """How many losses were not finite: a scalar on the device."""
        return self._bad

    def first_bad(self) -> BadStep | None:
        """The first of them, if there was one. Waits for the device."""
        for step, loss, ids in self._recent:
            if not loss.isfinite():
                return BadStep(step, self._rank, loss.item(), ids.tolist())
        return None

    def clear(self) -> None:
        """Forget the losses: they were good."""
        self._recent.clear()


def loss_error(found: list[BadStep], last_good: str) -> TrainingError:
    """What to raise for the steps found on all processes."""
    first = min(step.step for step in found)
    where = "; ".join(
        f"on rank {step.rank} the loss is {step.loss} for samples {', '.join(map(str, step.ids)) or 'none'}"
        for step in found
        if step.step == first
    )
    return TrainingError(
        f"training diverged at step {first + 1}: {where}. No metric was written; {last_good}. Look at these samples "
        "(`fastdps gallery`), lower --learning-rate, or use --precision fp32.",
        everywhere=True,
    )
