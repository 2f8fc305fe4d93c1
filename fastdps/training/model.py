"""The model that training updates, as one Module: heads, judges, and the backbone if it is trained.

    views or images --> [trained backbone] --> moments --> heads --> distances --> judge --> loss, accuracy

Shapes: n images, D distorted versions of each, C channels, K contexts, T judged pairs per step; m images and P pairs of
a group of judgements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdps.loading.order import part_of
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import Moments, group_moments, normalized_vectors
from fastdps.metric.heads import Heads, LogisticJudge, MLPJudge
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.precision import Precision, autocast
from fastdps.metric.scores import two_afc
from fastdps.runtime.processes import Processes
from fastdps.runtime.stages import stage
from fastdps.training.fused_error import fused_expected_error
from fastdps.training.losses import LOSSES, sync_loss
from fastdps.training.prior import Prior
from fastdps.training.recipes import TrainConfig
from fastdps.training.tasks import GroupedImages, Judgements


class Losses(NamedTuple):
    """What one step is about.

    Attributes:
        loss: Loss of each image and context, mean over its judgements, (n, K); for a group of judgements that of each
            judgement times its weight, (T, K).
        accuracy: Accuracy in the same shape, without gradient.
        prior: The term that holds the unadapted metric, see `fastdps.training.prior`, of each image (n,), or of a group
            (); None without one.
    """

    loss: Tensor
    accuracy: Tensor
    prior: Tensor | None


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
        self.heads = Heads(
            contexts,
            sum(channels),
            initial_weight=config.initial_weight,
            p=config.dropout,
            squares=config.head_parameters == "roots",
        )
        if config.head_init == "lpips":
            self.heads.init_as_lpips_(channels, generator)
        self.judge: nn.Module
        if config.judge == "logistic":
            self.judge = LogisticJudge(contexts, initial_temperature=config.initial_temperature)
        else:
            self.judge = MLPJudge(contexts, generator=generator)
        self.metric: PerceptualMetric | None = None
        self._prior: Prior | None = None
        self.loss = LOSSES[config.loss]
        self.sync_loss = config.sync_loss
        self._fuses = config.loss == "expected_error" and config.judge == "logistic" and not config.sync_loss

    def with_backbone(
        self, metric: PerceptualMetric, precision: Precision = "auto", processes: Processes | None = None
    ) -> TrainedModel:
        """Train the backbone of a metric too, computed in `precision`; `forward` then takes views, not moments.

        `processes` are those that divide the images of a group.
        """
        metric.backbone.requires_grad_(True)
        self.metric, self._precision, self._processes = metric, precision, processes
        return self

    def with_prior(self, prior: Prior) -> TrainedModel:
        """Hold the unadapted metric of the trained backbone."""
        self._prior = prior
        return self

    @torch.no_grad()
    def start_from(self, weights: Tensor) -> None:
        """Start with calibrated heads (K, C): their scale becomes the temperature of the logistic judge.

        The mean weight of each head stays as it was, which is what the learning rates are chosen for.
        """
        judge = self._logistic()
        factor = (weights.mean(dim=1) / self.heads.weights.mean(dim=1)).clamp_min(torch.finfo(weights.dtype).tiny)
        self.heads.set_(weights / factor[:, None])
        judge.log_temperature.copy_(factor.log())

    @torch.no_grad()
    def calibrated_weights(self) -> Tensor:
        """Return the heads times the temperature of the logistic judge, (K, C)."""
        return self.heads.weights * self._logistic().log_temperature.exp()[:, None]

    def _logistic(self) -> LogisticJudge:
        if not isinstance(self.judge, LogisticJudge):
            raise TypeError("only a logistic judge has a temperature")
        return self.judge

    def forward(
        self,
        inputs: Moments | Tensor | GroupedImages,
        judgements: Judgements,
        generator: torch.Generator,
        held: Tensor | None = None,
    ) -> Losses:
        """Compute loss and accuracy.

        Args:
            inputs: Moments (n, D, C), or if the backbone is trained, views (n, 1 + D, 3, H, W) or the images of a
                group of judgements.
            judgements: The pairs to compare, with their votes.
            generator: Source of the dropout noise.
            held: Views whose distances the prior holds, see `fastdps.training.prior.held_views`; None for a group of
                judgements, where it holds the compared pairs.
        """
        compared, prior = (inputs, None) if isinstance(inputs, Moments) else self._moments(inputs, held)
        d = self.heads(compared.mean, compared.var, generator)
        if self._fuses and judgements.are_labels:
            temperature, pairs = self._logistic().log_temperature, (judgements.first, judgements.second)
            return Losses(*fused_expected_error(d, temperature, *pairs, judgements.votes), prior)
        d0, d1 = judgements.pick(d)
        loss = self.loss(self.judge(d0, d1), judgements.votes)
        accuracy = two_afc(d0.detach(), d1.detach(), judgements.votes).mean(dim=1)
        if self.sync_loss:
            loss = loss + sync_loss(d0, d1, judgements.votes, accuracy.mean(dim=0))
        if (weights := judgements.weights) is not None:
            weights = weights if weights.dim() == 2 else weights[:, None]
            loss, accuracy = loss * weights, accuracy * weights
        return Losses(loss, accuracy, prior)

    def _moments(self, inputs: Tensor | GroupedImages, held: Tensor | None) -> tuple[Moments, Tensor | None]:
        """Return the moments, and the term of the prior, if there is one."""
        if self.metric is None:
            raise TypeError("views need a TrainedModel with a backbone")
        comparison, prior = self.metric.comparison, self._prior
        if isinstance(inputs, GroupedImages):
            found = self._group_moments(self.metric.backbone, comparison, inputs)
            if prior is None:
                return found, None
            with torch.no_grad():
                before = self._group_moments(prior.backbone, comparison, inputs).mean.sum(dim=-1)
            return found, prior.difference(found.mean.sum(dim=-1), before)[0]
        with autocast(self._precision, inputs.device):
            found = self.metric.moments(inputs)
        if prior is None or held is None:
            return found, None
        return found, prior.term(found, inputs, held)

    def _group_moments(self, backbone: Backbone, comparison: str, group: GroupedImages) -> Moments:
        """Return the moments (1, P, C) of the pairs of a group, whose images may be divided among processes."""
        with autocast(self._precision, group.images.device), stage("features"):
            features = backbone(group.images)
        vectors = normalized_vectors(features, comparison)
        processes = self._processes
        if processes is not None and processes.num_processes > 1:
            with stage("exchange"):
                vectors = _of_all_processes(vectors, group.images_of_all, processes)
        with stage("distances"):
            return group_moments(vectors, group.first, group.second, with_variance=self.training and self.heads.p > 0)


def _of_all_processes(vectors: Sequence[Tensor], images: int, processes: Processes) -> list[Tensor]:
    """Return the vectors of the images of all processes, (m, P, C_l) per tap, from those of this one."""
    flat = torch.cat([part.flatten(1) for part in vectors], dim=1)
    gathered = _GatherImages.apply(flat, images, processes)
    parts = gathered.split([math.prod(part.shape[1:]) for part in vectors], dim=1)
    return [part.unflatten(1, own.shape[1:]) for part, own in zip(parts, vectors, strict=True)]


class _GatherImages(torch.autograd.Function):
    """Collects the rows (m_r, F) of all processes, (m, F).

    Every process computes the same loss from all rows, so it has the whole gradient of its own rows already. It is
    multiplied by the number of processes, because gradients of parameters are averaged over processes.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: int, processes: Processes) -> Tensor:
        world = processes.num_processes
        parts = [part_of(rows, rank, world) for rank in range(world)]
        most = max(map(len, parts))
        padded = own.new_zeros(most, own.shape[1])
        padded[: len(own)] = own
        gathered = processes.gather(padded).view(world, most, -1)
        ctx.part, ctx.world = parts[processes.process_index], world
        return torch.cat([one[: len(part)] for one, part in zip(gathered, parts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.part.start : ctx.part.stop] * ctx.world, None, None
