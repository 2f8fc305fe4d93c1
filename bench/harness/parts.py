"""The parts of one training step as separate workloads, through the functions that training calls.

    load --> distort --> features --> distances --> heads

Every part processes the same batch repeatedly, so that its time contains no waiting for other parts.
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
from fastdps.loading.loader import ShardLoader, open_shards
from fastdps.loading.options import LoadOptions
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
    """Disable autograd and use the precision of the device, as `fastdps.metric` does for frozen backbones."""
    with torch.inference_mode(), autocast("auto", device):
        yield


def load_work(loader: ShardLoader) -> Workload:
    """Return a workload whose unit is an epoch, each with its own order."""
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
    """The parts of a training step, for one backbone and batch size.

    Attributes:
        bench: The run of the bench.
        shards: The shard set.
        backbone_name: The backbone.
        batch_size: The images of a batch.
    """

    bench: Bench
    shards: Path
    backbone_name: str = fast().backbone
    batch_size: int = BATCH

    @functools.cached_property
    def loader(self) -> ShardLoader:
        """The loader, opened as training opens it."""
        return open_shards(
            self.shards, batch_size=self.batch_size, device=self.bench.device, options=LoadOptions(components=["image"])
        )

    @functools.cached_property
    def batch(self) -> Batch:
        """The batch that the other parts process."""
        with closing(self.loader.epoch(0)) as batches:
            return next(batches)

    @functools.cached_property
    def backbone(self) -> Backbone:
        """The pretrained backbone."""
        return Backbone(self.backbone_name).requires_grad_(False).eval().to(self.bench.device)

    @functools.cached_property
    def views(self) -> Tensor:
        """All views of the batch as input of the backbone (n * 7, 3, H, W)."""
        with torch.inference_mode():
            return self._make_views().flatten(0, 1)

    @functools.cached_property
    def maps(self) -> list[Tensor]:
        """The feature maps of the views."""
        with frozen(self.bench.device):
            return self.backbone(self.views)

    def moments(self) -> Moments:
        """Return the moments of the maps."""
        with frozen(self.bench.device):
            return compare(self.maps, len(NAMES))

    @functools.cached_property
    def _task(self) -> RankingTask:
        return RankingTask(sample_rankings(1, NAMES, seed=0), fast(), self.bench.device)

    def views_of(self, batch: Batch) -> Tensor:
        """Return all views of any batch as input of the backbone (n * 7, 3, H, W)."""
        return self._task.views(batch, epoch=0).flatten(0, 1)

    def _make_views(self) -> Tensor:
        return self._task.views(self.batch, epoch=0)

    def _repeated(self, step: Callable[[], object]) -> Workload:
        """Return a workload whose unit is one batch."""

        def frozen_step() -> None:
            with frozen(self.bench.device):
                step()

        return repeated(frozen_step, len(self.batch))

    def load(self) -> Workload:
        """Return the workload of loading epochs of the shard set."""
        return load_work(self.loader)

    def distort(self) -> Workload:
        """Return the workload from uint8 images to seven float views: draw, convert, distort."""
        return self._repeated(self._make_views)

    def features(self) -> Workload:
        """Return the workload from seven views to feature maps."""
        return self._repeated(lambda: self.backbone(self.views))

    def trained_features(self) -> Workload:
        """Return `features` including the backward pass and the optimizer step, as when the backbone is trained."""
        config = fast()
        backbone = Backbone(self.backbone_name).to(self.bench.device)
        optimizer = torch.optim.Adam(
            backbone.parameters(), lr=config.backbone_learning_rate, betas=config.adam_betas, fused=True
        )
        views = self.views.clone()  # created outside inference mode, so that autograd may save it

        def step() -> None:
            with autocast("auto", views.device):
                maps = backbone(views)
            # Zero gradients take as long as others, and leave the backbone unchanged however often this runs.
            torch.autograd.backward(maps, [torch.zeros_like(feature) for feature in maps])
            optimizer.step()
            optimizer.zero_grad()

        return repeated(step, len(self.batch))

    def distances(self) -> Workload:
        """Return the workload from feature maps to moments."""
        return self._repeated(self.moments)

    def trained_distances(self) -> Workload:
        """Return `distances` including the backward pass, from the gradients of the moments to those of the maps."""
        maps = [feature.clone().requires_grad_() for feature in self.maps]

        def step() -> None:
            with autocast("auto", maps[0].device):
                found = compare(maps, len(NAMES))
            gradients = [torch.ones_like(found.mean), torch.ones_like(found.var)]
            torch.autograd.grad([found.mean, found.var], maps, gradients)

        return repeated(step, len(self.batch))

    def heads(self, contexts: int) -> Workload:
        """Return the workload of a training step of the heads on the moments (see `head_step`)."""
        return repeated(head_step(self.moments(), contexts), len(self.batch))


def head_step(moments: Moments, contexts: int) -> Callable[[], object]:
    """Return a training step of the heads and judges of K contexts: forward, backward, Adam, projection.

    It is the step of training itself, with a task without views and a metric that returns the given moments.

    Args:
        moments: The moments (n, D, C) of a batch.
        contexts: The number of contexts, K.

    Returns:
        A function that performs one step.
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
    """Return a workload whose unit is one batch: scoring a metric of all contexts and the unadapted one."""
    device = parts.bench.device
    metric = PerceptualMetric(parts.backbone, rankings=all_rankings(NAMES)).to(device)
    baseline = PerceptualMetric(parts.backbone).to(device)
    processes = join_processes()

    def score(amount: int) -> Timed:
        epochs = math.ceil(amount / parts.loader.steps)
        loader = FirstSteps(parts.loader, math.ceil(amount / epochs), parts.batch_size)
        with redirect_stderr(io.StringIO()):
            for _ in range(epochs):  # each ends with a synchronizing read from the device
                tally_choices(baseline, [metric], loader.as_loader(), processes, draws=DRAWS)
        return Timed(epochs * loader.samples, loader.elapsed_s())

    return score


class _WithoutViews(RankingTask):
    """A ranking task for a metric that ignores the views."""

    def views(self, batch: Batch, epoch: int) -> Tensor:  # noqa: ARG002
        """Return an empty tensor on the device."""
        return self._first.new_empty(0)


class _GivenMoments:
    """A substitute for a metric, which returns the same moments for any views."""

    def __init__(self, moments: Moments) -> None:
        self._given = moments
        self.channels = moments.mean.shape[-1:]

    def moments(self, _: Tensor) -> Moments:
        """Return the moments."""
        return self._given
