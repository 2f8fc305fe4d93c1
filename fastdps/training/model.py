"""The model that training updates, as one Module: heads, judges, and the backbone if it is trained.

    views --> [trained backbone] --> moments --> heads --> distances --> judge --> loss, accuracy

Shapes: n images, D distorted versions of each, C channels, K contexts, T judged pairs per step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastdps.metric.distances import Moments
from fastdps.metric.heads import Heads, LogisticJudge, MLPJudge
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.precision import Precision, autocast
from fastdps.metric.scores import two_afc
from fastdps.training.losses import LOSSES, sync_loss
from fastdps.training.recipes import TrainConfig
from fastdps.training.tasks import Judgements


class TrainedModel(nn.Module):
    """Heads and judges of K contexts, and the backbone of a metric if it is trained.

    They form one Module so that a single gradient exchange per step averages all of them over processes.

    Args:
        config: Settings of the run.
        contexts: Number of contexts, K.
        channels: Channels of each tap.
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

    def with_backbone(self, metric: PerceptualMetric, precision: Precision = "auto") -> TrainedModel:
        """Train the backbone of a metric too, computed in `precision`; `forward` then takes views, not moments."""
        metric.backbone.requires_grad_(True)
        self.metric, self._precision = metric, precision
        return self

    def forward(
        self, inputs: Moments | Tensor, judgements: Judgements, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Compute loss and accuracy.

        Args:
            inputs: Moments (n, D, C), or views (n, 1 + D, 3, H, W) if the backbone is trained.
            judgements: The pairs to compare, with their votes.
            generator: Source of the dropout noise.

        Returns:
            Loss (n, K) and, without gradient, accuracy (n, K); both are means over the judgements of an image.
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
            raise TypeError("views need a TrainedModel with a backbone")
        with autocast(self._precision, views.device):
            return self.metric.moments(views)
