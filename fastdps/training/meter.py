"""Counting while training, without waiting for the device between log lines."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdps.loading.spec import Batch
from fastdps.runtime.processes import Processes


@dataclass
class Meter:
    """Sums over steps; what lives on the device stays there until `read`."""

    triplets_per_image: int
    loss: Tensor
    accuracy: Tensor
    started_s: float
    images: int = 0
    wait_s: float = 0.0

    @classmethod
    def start(cls, device: torch.device, *, triplets_per_image: int) -> Meter:
        """An empty meter whose clock runs from now; `triplets_per_image` counts those of all contexts."""
        return cls(
            triplets_per_image,
            loss=torch.zeros((), device=device),
            accuracy=torch.zeros((), device=device),
            started_s=time.perf_counter(),
        )

    def add(self, loss: Tensor, accuracy: Tensor, batch: Batch, wait_s: float) -> None:
        """Count one step: loss (n, K) and accuracy (n, K) of this process's part of it, and its wait for the data."""
        contexts = loss.shape[1]
        self.loss += loss.detach().sum() / contexts
        self.accuracy += accuracy.sum() / contexts
        self.images += batch.global_size
        self.wait_s += wait_s

    def rates(self) -> dict[str, float]:
        """How fast it goes: over all processes, except for the wait, which is this process's."""
        elapsed_s = time.perf_counter() - self.started_s
        return {
            "images_per_s": self.images / elapsed_s,
            "triplets_per_s": self.images * self.triplets_per_image / elapsed_s,
            "data_wait_fraction": self.wait_s / elapsed_s,
        }

    def read(self, processes: Processes) -> dict[str, Any]:
        """Mean loss and accuracy over images and contexts, and rates. Waits for the device and the other processes."""
        sums = processes.reduce(torch.stack([self.loss, self.accuracy]), reduction="sum").tolist()
        return {"loss": sums[0] / self.images, "accuracy": sums[1] / self.images, **self.rates()}
