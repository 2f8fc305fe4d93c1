"""The parts of one training step, each alone, through the functions that training itself calls.

    load --> distort --> features --> distances --> heads

Every part works on the same batch again and again, so that a part costs what it costs and nothing is waited for.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from bench.harness.bench import BATCH, Bench
from bench.harness.first_steps import FirstSteps
from bench.harness.measure import Timed, Workload, repeated
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import all_rankings, sample_rankings
from fastdps.evaluation.options import DRAWS
from fastdps.evaluation.tally import tally_choices
from fastdps.loading.loader import LoadOptions, ShardLoader, open_shards
from fastdps.loading.spec import Batch
from fastdps.metric.backbones import Backbone
from fastdps.metric.distances import Moments
from fastdps.metric.distances import moments as compare
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.precision import autocast
from fastdps.runtime.processes import join_processes
from fastdps.training.recipes import fast
from fastdps.training.step import Stepper
from fastdps.training.tasks import RankingTask


@contextmanager
def frozen(device: torch.device) -> Iterator[None]:
    """Run what is not trained as `frozen_moments` does: without autograd, in the precision of the device."""
    with torch.inference_mode(), autocast("auto", device):
        yield


def load_work(loader: ShardLoader) -> Workload:
    """Work whose unit is an epoch, each with its own order."""
    epoch = 0

    def work(amount: int) -> float:
        nonlocal epoch
        images = 0
        for _ in range(amount):
            images += sum(len(batch) for batch in loader.epoch(epoch))
            epoch += 1
        return images

    return work


@dataclass(frozen=True)
class StepParts:
    """The parts for one backbone and batch size, on images of the shard set `shards`."""

    bench: Bench
    shards: Path
    backbone_name: str = fast().backbone
    batch_size: int = BATCH

    @functools.cached_property
    def loader(self) -> ShardLoader:
        """The loader as training opens it."""
        return open_shards(
            self.shards, batch_size=self.batch_size, device=self.bench.device, options=LoadOptions(components=["image"])
        )

    @functools.cached_property
    def batch(self) -> Batch:
        """The batch that the other parts work on."""
        with closing(self.loader.epoch(0)) as batches:
            return next(batches)

    @functools.cached_property
    def backbone(self) -> Backbone:
        """The pretrained backbone."""
        return Backbone(self.backbone_name).requires_grad_(False).eval().to(self.bench.device)

    @functools.cached_property
    def views(self) -> Tensor:
        """All views of the batch as the backbone takes them, (n * 7, 3, H, W)."""
        with torch.inference_mode():
            return self._make_views().flatten(0, 1)

    @functools.cached_property
    def maps(self) -> list[Tensor]:
        """The feature maps of the views."""
        with frozen(self.bench.device):
            return self.backbone(self.views)

    def moments(self) -> Moments:
        """The moments of the maps."""
        with frozen(self.bench.device):
            return compare(self.maps, len(NAMES))

    @functools.cached_property
    def _task(self) -> RankingTask:
        return RankingTask(sample_rankings(1, NAMES, seed=0), fast(), self.bench.device)

    def views_of(self, batch: Batch) -> Tensor:
        """All views of any batch as the backbone takes them, (n * 7, 3, H, W)."""
        return self._task.views(batch, epoch=0).flatten(0, 1)

    def _make_views(self) -> Tensor:
        return self._task.views(self.batch, epoch=0)

    def _repeated(self, step: Callable[[], object]) -> Workload:
        """Work whose unit is one batch."""

        def frozen_step() -> None:
            with frozen(self.bench.device):
                step()

        return repeated(frozen_step, len(self.batch))

    def load(self) -> Workload:
        """Epochs of the shard set."""
        return load_work(self.loader)

    def distort(self) -> Workload:
        """uint8 images to seven float views: draw, convert, distort."""
        return self._repeated(self._make_views)

    def features(self) -> Workload:
        """Seven views to feature maps."""
        return self._repeated(lambda: self.backbone(self.views))

    def trained_features(self) -> Workload:
        """Seven views to feature maps and back, with a step of the optimizer: as where the backbone is trained."""
        config = fast()
        backbone = Backbone(self.backbone_name).to(self.bench.device)
        optimizer = torch.optim.Adam(
            backbone.parameters(), lr=config.backbone_learning_rate, betas=config.adam_betas, fused=True
        )
        views = self.views.clone()  # made outside inference mode, so that autograd may keep it

        def step() -> None:
            with autocast("auto", views.device):
                maps = backbone(views)
            # Gradients of zero take as long as others, and leave the backbone as it is however often this runs.
            torch.autograd.backward(maps, [torch.zeros_like(feature) for feature in maps])
            optimizer.step()
            optimizer.zero_grad()

        return repeated(step, len(self.batch))

    def distances(self) -> Workload:
        """Feature maps to moments."""
        return self._repeated(self.moments)

    def trained_distances(self) -> Workload:
        """Feature maps to moments, and the gradients of the moments to those of the maps."""
        maps = [feature.clone().requires_grad_() for feature in self.maps]

        def step() -> None:
            with autocast("auto", maps[0].device):
                found = compare(maps, len(NAMES))
            gradients = [torch.ones_like(found.mean), torch.ones_like(found.var)]
            torch.autograd.grad([found.mean, found.var], maps, gradients)

        return repeated(step, len(self.batch))

    def heads(self, contexts: int) -> Workload:
        """Moments to a step of the heads: see `head_step`."""
        return repeated(head_step(self.moments(), contexts), len(self.batch))


def head_step(moments: Moments, contexts: int) -> Callable[[], object]:
    """One training step of K contexts' heads and judges on moments (n, D, C): forward, backward, Adam, projection.

    It is the step that training takes, where the task gives no views and the metric has these moments.
    """
    config, device = fast(), moments.mean.device
    ids = torch.arange(len(moments.mean))
    batch = Batch({}, ids, len(ids))
    stepper = Stepper(
        config,
        _WithoutViews(sample_rankings(contexts, NAMES, seed=0), config, device),
        cast(PerceptualMetric, _GivenMoments(moments)),
        join_processes(),
    )
    steps = itertools.count()
    return lambda: stepper.step(batch, epoch=0, step=next(steps))


def score_work(parts: StepParts) -> Workload:
    """Work whose unit is one batch: scoring a metric of all contexts and the unadapted one."""
    device = parts.bench.device
    metric = PerceptualMetric(parts.backbone, rankings=all_rankings(NAMES)).to(device)
    baseline = PerceptualMetric(parts.backbone).to(device)
    processes = join_processes()

    def score(amount: int) -> Timed:
        epochs = math.ceil(amount / parts.loader.steps)
        loader = FirstSteps(parts.loader, math.ceil(amount / epochs), parts.batch_size)
        with redirect_stderr(io.StringIO()):
            for _ in range(epochs):  # each ends with a read from the device
                tally_choices(baseline, [metric], loader.as_loader(), processes, draws=DRAWS)
        return Timed(epochs * loader.samples, loader.elapsed_s())

    return score


class _WithoutViews(RankingTask):
    """A ranking task for a metric that does not look at views."""

    def views(self, batch: Batch, epoch: int) -> Tensor:  # noqa: ARG002
        """Nothing, on the device."""
        return self._first.new_empty(0)


class _GivenMoments:
    """What a step asks of a metric: here the same moments whatever the views."""

    def __init__(self, moments: Moments) -> None:
        self._given = moments
        self.channels = moments.mean.shape[-1:]

    def moments(self, _: Tensor) -> Moments:
        """The moments."""
        return self._given
