"""What all processes have to do at the same step: stop for a signal, and see that the loss is finite."""

from __future__ import annotations

import time

import torch

from fastdps.runtime.processes import Processes
from fastdps.runtime.signals import StopRequest
from fastdps.training.guard import LossGuard, loss_error

#: How often processes ask each other, in time and in steps at most.
AGREE_S, AGREE_STEPS = 1.0, 20


class Agreement:
    """Asks all processes, which needs the device and the network, so not at every one of many short steps."""

    def __init__(self, processes: Processes, request: StopRequest, guard: LossGuard) -> None:
        self._processes, self._request, self._guard = processes, request, guard
        self._asked_s = time.perf_counter()
        self._steps, self._every = 0, 1

    def is_due(self) -> bool:
        """Count a step; whether it is time to ask, at the same steps on every process."""
        self._steps += 1
        return self._steps >= self._every

    def reach(self, last_good: str) -> int:
        """Ask. Returns the signal to stop for, or 0. Raises `TrainingError` for a loss that is not finite."""
        now_s = time.perf_counter()
        own = torch.tensor([float(self._request.number), now_s - self._asked_s], device=self._processes.device)
        signals, elapsed_s, bad = self._processes.reduce(torch.cat([own, self._guard.bad[None]])).tolist()
        if bad:
            found = self._processes.gather_objects(self._guard.first_bad())
            raise loss_error([step for step in found if step], last_good)
        self._guard.clear()
        # Sums are the same on every process, and so is what follows from them.
        step_s = elapsed_s / self._processes.num_processes / max(1, self._steps)
        self._every = max(1, min(AGREE_STEPS, int(AGREE_S / max(step_s, 1e-6))))
        self._steps, self._asked_s = 0, now_s
        return max(self._processes.gather_objects(self._request.number)) if signals else 0
