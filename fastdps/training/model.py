"""What training changes, as one Module, and the small functions a step is made of.

    views --> backbone (if it is trained) --> moments --> heads --> distances --> judge --> loss, accuracy

Shapes: n images, D distorted versions of each, C channels, K contexts, T pairs that are judged in a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fastdps.metric.distances import Moments
from fastdps.metric.heads import Heads, LogisticJudge, MLPJudge
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.precision import Precision, autocast
from fastdps.metric.scores import two_afc
from fastdps.training.losses import LOSSES, sync_loss
from fastdps.training.recipes import TrainConfig


@dataclass(frozen=True)
class Judgements:
    """Which versions of each image are compared, and what is right.

    `first` and `second` (T,) or (n, T, K) int64 number the D versions; `votes`, the share that finds the second closer,
    broadcasts to (n, T, K). Vectors stand for all images and contexts alike.
    """

    first: Tensor
    second: Tensor
    votes: Tensor

    def pick(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """The two distances of each judgement: (n, D, K) to two (n, T, K)."""
        if self.first.dim() == 1:
            # Not by indexing, whose gradient is several times slower on a CPU.
            return distances.index_select(1, self.first), distances.index_select(1, self.second)
        return distances.gather(1, self.first), distances.gather(1, self.second)


class Trainee(nn.Module):
    """Heads and judges of K contexts, and for `tune` and `scratch` the backbone of `metric` with them.

    It is one Module so that the gradients of all of it are averaged over processes.
    """

    def __init__(self, config: TrainConfig, contexts: int, channels: Sequence[int]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)
        self.heads = Heads(contexts, sum(channels), initial_weight=config.initial_weight, p=config.dropout)
        if config.head_init == "lpips":
            self.heads.init_as_lpips_(channels, generator)
        self.judge: nn.Module
        if config.judge == "logistic":
            self.judge = LogisticJudge(contexts, initial_temperature=config.initial_temperature)
        else:
            self.judge = MLPJudge(contexts, generator=generator)
        self.metric: PerceptualMetric | None = None
        self.loss = LOSSES[config.loss]
        self.sync_loss = config.sync_loss

    def with_backbone(self, metric: PerceptualMetric, precision: Precision = "auto") -> Trainee:
        """Train the backbone of a metric too, computing in `precision`; `forward` then takes views, not moments."""
        metric.backbone.requires_grad_(True)
        self.metric, self._precision = metric, precision
        return self

    def forward(
        self, inputs: Moments | Tensor, judgements: Judgements, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Loss (n, K) and, without gradient, accuracy (n, K); both are means over the judgements of an image.

        `inputs` are moments (n, D, C), or views (n, 1 + D, 3, H, W) where the backbone is trained.
        """
        moments = self._moments(inputs) if isinstance(inputs, Tensor) else inputs
        d0, d1 = judgements.pick(self.heads(moments.mean, moments.var, generator))
        loss = self.loss(self.judge(d0, d1), judgements.votes)
        accuracy = two_afc(d0.detach(), d1.detach(), judgements.votes).mean(dim=1)
        if self.sync_loss:
            loss = loss + sync_loss(d0, d1, judgements.votes, accuracy.mean(dim=0))
        return loss, accuracy

    def _moments(self, views: Tensor) -> Moments:
        if self.metric is None:
            raise TypeError("views need a Trainee with a backbone")
        with autocast(self._precision, views.device):
            return self.metric.moments(views)


def learning_rate_factor(config: TrainConfig, done: float) -> float:
    """What the learning rates are multiplied with once a share `done` (0 to 1) of the training is behind.

    See `TrainConfig.decay`.
    """
    if config.decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    # LPIPS lowers the rate after each epoch of the second half, so the first of these still has the full rate.
    decaying = config.epochs // 2
    lowered = math.floor(done * config.epochs + 1e-9) - (config.epochs - decaying)
    return 1 - max(0, lowered) / max(1, decaying)


def dropout_generator(seed: int, step: int, rank: int, device: torch.device) -> torch.Generator:
    """The noise of one step of one process, independent of all steps before it."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))
