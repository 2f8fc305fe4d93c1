"""Progress of a training: the state, besides tensors, from which it resumes at the next batch, and live meters."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdps.loading.mixed import MixedLoader
from fastdps.loading.options import Divide
from fastdps.loading.shard_loader import ShardLoader
from fastdps.loading.spec import Batch, BatchSource
from fastdps.runtime.processes import Processes


@dataclass
class Progress:
    """Position of a training in its data, and the time it has taken.

    Attributes:
        step: Number of steps done.
        epoch: Number of epochs done.
        seen: Samples seen in the current epoch.
        left: Positions in the order of the epoch that were left when the current processes began it, None for all.
        steps: Number of steps since then (see `ShardLoader.left_after`).
        images: Number of images in all steps.
        samples: Number of samples in all steps: images, triplets, or judgements.
        elapsed_s: Seconds taken by all steps.
        wait_s: Seconds spent waiting for data, part of `elapsed_s`.
    """

    step: int = 0
    epoch: int = 0
    seen: int = 0
    left: list[range] | None = None
    steps: int = 0
    images: int = 0
    samples: int = 0
    elapsed_s: float = 0.0
    wait_s: float = 0.0

    def add(self, batch: Batch) -> None:
        """Count a step."""
        self.step += 1
        self.steps += 1
        self.seen += batch.global_size
        self.images += batch.global_images
        self.samples += batch.global_size

    def next_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch += 1
        self.left, self.steps, self.seen = None, 0, 0

    def to_json(self, loader: BatchSource) -> dict[str, Any]:
        """Return the state for `resumed`. From its key `rest`, any number of processes can resume."""
        return {
            **dataclasses.asdict(self),
            "left": None if self.left is None else _to_pairs(self.left),
            "rest": _to_pairs(loader.left_after(self.steps, self.left)),
        }

    @classmethod
    def resumed(cls, state: Mapping[str, Any], *, same_division: bool) -> Progress:
        """Return the progress of a state of `to_json`.

        Args:
            state: The state.
            same_division: The number of processes and what they divide are the same as before, and so are the batches.
        """
        state = {"samples": state["images"], **state}  # checkpoints of 0.1.0 count images only, one for each sample
        known = {field.name: state[field.name] for field in dataclasses.fields(cls)}
        progress = cls(**known)
        if not same_division:
            progress.left, progress.steps = _to_ranges(state["rest"]), 0
        elif progress.left is not None:
            progress.left = _to_ranges(state["left"])
        return progress


def divide_of(loader: BatchSource) -> Divide:
    """Return what processes divide in a loader, see `LoadOptions.divide`; "epoch" where there is no choice."""
    return loader.divide if isinstance(loader, ShardLoader | MixedLoader) else "epoch"


def _to_pairs(ranges: list[range]) -> list[tuple[int, int]]:
    return [(numbers.start, numbers.stop) for numbers in ranges]


def _to_ranges(pairs: list[list[int]]) -> list[range]:
    return [range(start, stop) for start, stop in pairs]


@dataclass
class Meter:
    """Sums over the steps between two log lines; tensors stay on the device until `read`.

    Attributes:
        triplets_per_sample: Triplets per sample over all contexts.
        loss: Sum of the losses, mean over contexts.
        accuracy: Sum of the accuracies, mean over contexts.
        started_s: Time at which the meter was started, on the clock of `time.perf_counter`.
        images: Number of images over all processes.
        samples: Number of samples over all processes.
        wait_s: Seconds that this process waited for data.
        prior: Sum of the terms that hold the unadapted metric; None without them.
    """

    triplets_per_sample: int
    loss: Tensor
    accuracy: Tensor
    started_s: float
    images: int = 0
    samples: int = 0
    wait_s: float = 0.0
    prior: Tensor | None = None

    @classmethod
    def start(cls, device: torch.device, *, triplets_per_sample: int) -> Meter:
        """Return an empty meter whose clock starts now."""
        return cls(
            triplets_per_sample,
            loss=torch.zeros((), device=device),
            accuracy=torch.zeros((), device=device),
            started_s=time.perf_counter(),
        )

    def add(self, loss: Tensor, accuracy: Tensor, batch: Batch, wait_s: float, prior: Tensor | None = None) -> None:
        """Count one step: loss and accuracy (n, K) of this process, its wait for the data, and the prior's term."""
        contexts = loss.shape[1]
        self.loss += loss.detach().sum() / contexts
        self.accuracy += accuracy.sum() / contexts
        self.images += batch.global_images
        self.samples += batch.global_size
        self.wait_s += wait_s
        if prior is not None:
            self.prior = prior if self.prior is None else self.prior + prior

    def rates(self) -> dict[str, float]:
        """Return the throughput over all processes, and the share of time that this process waited for data."""
        elapsed_s = time.perf_counter() - self.started_s
        return {
            "images_per_s": self.images / elapsed_s,
            "triplets_per_s": self.samples * self.triplets_per_sample / elapsed_s,
            "data_wait_fraction": self.wait_s / elapsed_s,
        }

    def read(self, processes: Processes) -> dict[str, Any]:
        """Return means of loss, accuracy and the prior's term, and rates. Waits for device and processes."""
        names = ["loss", "accuracy"] + ["prior"] * (self.prior is not None)
        values = [self.loss, self.accuracy, *([] if self.prior is None else [self.prior])]
        sums = processes.reduce(torch.stack(values), reduction="sum").tolist()
        return {**{name: value / self.samples for name, value in zip(names, sums, strict=True)}, **self.rates()}
