"""Best epoch: score a validation set after each epoch, and keep the best state: of each context, or of all together.

Heads on a frozen backbone are independent, so each context ends with its own best epoch. Contexts that share a trained
backbone end with the epoch of the best mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastdps.loading.spec import BatchSource
from fastdps.metric.distances import distances
from fastdps.metric.perceptual import PerceptualMetric, frozen_moments
from fastdps.metric.precision import Precision
from fastdps.metric.scores import two_afc
from fastdps.runtime.processes import Processes
from fastdps.training.tasks import Task

#: Seed of the distortions on the validation set; reported scores use other distortions.
VALIDATION_SEED = 0x5EED_7A11_0000_0002
_BACKBONE = "backbone."


def validation_scores(
    task: Task, metric: PerceptualMetric, loader: BatchSource, processes: Processes, precision: Precision = "auto"
) -> Tensor:
    """Return the agreement (K,) of a metric with the judgements of a task, over a shard set and all processes.

    The metric itself is scored, without dropout and without judge.
    """
    agreed = torch.zeros(task.contexts, dtype=torch.float64, device=metric.weights.device)
    for number, batch in enumerate(loader.epoch(0)):
        processes.beat(f"validates batch {number}")
        judgements = task.judgements(batch, 0)
        with torch.inference_mode():
            views = task.views(batch, 0)
        d0, d1 = judgements.pick(distances(metric.weights, frozen_moments(metric, views, precision).mean))
        agreed += two_afc(d0, d1, judgements.votes).sum(dim=(0, 1), dtype=torch.float64)
    return processes.reduce(agreed, reduction="sum") / (loader.samples * task.judgements_per_image)


@dataclass(frozen=True)
class Validation:
    """A task and a loader of validation images, by which the best epoch is chosen."""

    task: Task
    loader: BatchSource

    def scores(self, metric: PerceptualMetric, processes: Processes, precision: Precision) -> Tensor:
        """Return the agreement (K,) of a metric with the judgements of the task."""
        return validation_scores(self.task, metric, self.loader, processes, precision)


class Validator(Protocol):
    """Scores a metric after each epoch, so that the best epoch can be chosen."""

    def scores(self, metric: PerceptualMetric, processes: Processes, precision: Precision) -> Tensor:
        """Return a score of each context, (K,), higher for a better metric; the same on every process."""
        ...


class BestEpoch:
    """Keeps the state of the best epoch, separately for each context where the backbone is frozen."""

    def __init__(self, contexts: int, *, trains_backbone: bool) -> None:
        self.scores = torch.full((contexts,), -1.0, dtype=torch.float64)
        self.epochs = [0] * contexts
        self._trains_backbone = trains_backbone
        self._weights: Tensor | None = None
        self._backbone: dict[str, Tensor] = {}

    def update(self, epoch: int, scores: Tensor, metric: PerceptualMetric) -> None:
        """Record the scores (K,) and, where they are better, the state after an epoch."""
        better = scores.cpu() > self.scores
        if self._trains_backbone:
            better = (scores.cpu().mean() > self.scores.mean()).expand_as(better)
        if not better.any():
            return
        self.scores[better] = scores.cpu()[better]
        self.epochs = [epoch if is_better else before for is_better, before in zip(better, self.epochs, strict=True)]
        if self._weights is None:
            self._weights = metric.weights.clone()
        rows = better.to(metric.weights.device)
        self._weights[rows] = metric.weights[rows]
        if self._trains_backbone:
            self._backbone = {name: value.clone() for name, value in metric.backbone.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors for `load`, which also needs `epochs`."""
        if self._weights is None:
            return {}
        return {"scores": self.scores, "weights": self._weights} | {
            _BACKBONE + name: value for name, value in self._backbone.items()
        }

    def load(self, tensors: Mapping[str, Tensor], epochs: Sequence[int], device: torch.device) -> None:
        """Restore the state of `tensors` and `epochs`."""
        if tensors:
            self.scores, self.epochs = tensors["scores"], list(epochs)
            self._weights = tensors["weights"].to(device)
            self._backbone = {
                name.removeprefix(_BACKBONE): value for name, value in tensors.items() if name.startswith(_BACKBONE)
            }

    def restore(self, metric: PerceptualMetric) -> None:
        """Copy the best state into the metric."""
        if self._weights is not None:
            metric.weights.copy_(self._weights)
        if self._backbone:
            metric.backbone.load_state_dict(self._backbone)
