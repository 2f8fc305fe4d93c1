"""Decisions that all processes make at the same step: stop for a signal, and abort on a loss that is not finite."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from fastdps.errors import TrainingError
from fastdps.loading.mixed import sample_name
from fastdps.loading.spec import Batch
from fastdps.runtime.processes import Processes
from fastdps.runtime.signals import StopRequest

#: Largest interval between two exchanges, in seconds and in steps.
AGREE_S, AGREE_STEPS = 1.0, 20


class BadStep(NamedTuple):
    """The first step of one process whose loss is NaN or infinite, with its rank, the loss and the sample ids."""

    step: int
    rank: int
    loss: float
    ids: list[int]


class LossGuard:
    """Records the losses of this process since the last exchange, without waiting for the device at every step."""

    def __init__(self, device: torch.device, rank: int) -> None:
        self._rank = rank
        self._bad = torch.zeros((), device=device)
        self._recent: list[tuple[int, Tensor, Tensor]] = []

    def add(self, step: int, loss: Tensor, batch: Batch) -> None:
        """Record the loss (n, K) of a step."""
        total = loss.sum()
        self._bad += ~total.isfinite()
        self._recent.append((step, total, batch.ids))

    @property
    def bad(self) -> Tensor:
        """The number of losses that were not finite: a scalar on the device."""
        return self._bad

    def first_bad(self) -> BadStep | None:
        """Return the first step with a loss that is not finite, if any. Waits for the device."""
        for step, loss, ids in self._recent:
            if not loss.isfinite():
                return BadStep(step, self._rank, loss.item(), ids.tolist())
        return None

    def clear(self) -> None:
        """Discard the recorded losses after they were found finite."""
        self._recent.clear()


def loss_error(found: list[BadStep], last_good: str) -> TrainingError:
    """Return the error for the bad steps of all processes; `last_good` says which checkpoint remains."""
    first = min(step.step for step in found)
    where = "; ".join(
        f"on rank {step.rank} the loss is {step.loss} for samples {', '.join(map(sample_name, step.ids)) or 'none'}"
        for step in found
        if step.step == first
    )
    return TrainingError(
        f"training diverged at step {first + 1}: {where}. No metric was written; {last_good}. Look at these samples "
        "(`fastdps gallery`), lower --learning-rate, or use --precision fp32.",
        everywhere=True,
    )


class Agreement:
    """Exchanges signals and bad losses of all processes, at intervals because an exchange takes time."""

    def __init__(self, processes: Processes, request: StopRequest, guard: LossGuard) -> None:
        self._processes, self._request, self._guard = processes, request, guard
        self._asked_s = time.perf_counter()
        self._steps, self._every = 0, 1

    def is_due(self) -> bool:
        """Count a step; return True if it is time for an exchange, at the same steps on every process."""
        self._steps += 1
        return self._steps >= self._every

    def reach(self, last_good: str) -> int:
        """Exchange, and return the signal to stop for, or 0. Raises `TrainingError` for a NaN or infinite loss."""
        now_s = time.perf_counter()
        own = torch.tensor([float(self._request.number), now_s - self._asked_s], device=self._processes.device)
        signals, elapsed_s, bad = self._processes.reduce(torch.cat([own, self._guard.bad[None]])).tolist()
        if bad:
            found = self._processes.gather_objects(self._guard.first_bad())
            raise loss_error([step for step in found if step], last_good)
        self._guard.clear()
        # The sums are the same on every process, so all processes compute the same interval.
        step_s = elapsed_s / self._processes.num_processes / max(1, self._steps)
        self._every = max(1, min(AGREE_STEPS, int(AGREE_S / max(step_s, 1e-6))))
        self._steps, self._asked_s = 0, now_s
        return max(self._processes.gather_objects(self._request.number)) if signals else 0
