"""The parts of one training step, each alone, through the functions that training itself calls.

    load --> distort --> features --> distances --> heads

Every part works on the same batch again and again, so that a part costs what it costs and nothing is waited for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.bench import BATCH, Bench
from bench.measure import Work, repeated
from fastdps.backbones import Backbone
from fastdps.contexts import sample_rankings
from fastdps.distances import Moments
from fastdps.distances import moments as compare
from fastdps.distortions import NAMES, draw_plan
from fastdps.extraction import make_views, to_float
from fastdps.loading import Batch, ShardLoader, open_shards
from fastdps.recipes import fast
from fastdps.tasks import RankingTask
from fastdps.trainee import Trainee, dropout_generator


@contextmanager
def frozen(device: torch.device) -> Iterator[None]:
    """How `fastdps.extraction` runs what it does not train: without autograd, in bfloat16 on a GPU."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"))
        yield


def load_work(loader: ShardLoader) -> Work:
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
class Parts:
    """The parts for one backbone and batch size, on images of the shard set `shards`."""

    bench: Bench
    shards: Path
    backbone_name: str = fast().backbone
    batch_size: int = BATCH

    @functools.cached_property
    def loader(self) -> ShardLoader:
        """The loader as training opens it."""
        return open_shards(
            self.shards, batch_size=self.batch_size, device=self.bench.device, seed=0, components=["image"]
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

    def _make_views(self) -> Tensor:
        images = self.batch.images
        plan = draw_plan(self.batch.ids, seed=0, epoch=0)
        return make_views(to_float(images), plan.to(images.device))

    def _repeated(self, step: Callable[[], object]) -> Work:
        """Work whose unit is one batch."""

        def frozen_step() -> None:
            with frozen(self.bench.device):
                step()

        return repeated(frozen_step, len(self.batch))

    def load(self) -> Work:
        """Epochs of the shard set."""
        return load_work(self.loader)

    def distort(self) -> Work:
        """uint8 images to seven float views: draw, convert, distort."""
        return self._repeated(self._make_views)

    def features(self) -> Work:
        """Seven views to feature maps."""
        return self._repeated(lambda: self.backbone(self.views))

    def trained_features(self) -> Work:
        """Seven views to feature maps and back, with a step of the optimizer: as where the backbone is trained."""
        config = fast()
        backbone = Backbone(self.backbone_name).to(self.bench.device)
        optimizer = torch.optim.Adam(
            backbone.parameters(), lr=config.backbone_learning_rate, betas=config.adam_betas, fused=True
        )
        views = self.views.clone()  # made outside inference mode, so that autograd may keep it

        def step() -> None:
            maps = backbone(views)
            torch.autograd.backward(maps, [torch.zeros_like(feature) for feature in maps])
            optimizer.step()
            optimizer.zero_grad()

        return repeated(step, len(self.batch))

    def distances(self) -> Work:
        """Feature maps to moments."""
        return self._repeated(self.moments)

    def trained_distances(self) -> Work:
        """Feature maps to moments, and the gradients of the moments to those of the maps."""
        maps = [feature.clone().requires_grad_() for feature in self.maps]

        def step() -> None:
            found = compare(maps, len(NAMES))
            gradients = [torch.ones_like(found.mean), torch.ones_like(found.var)]
            torch.autograd.grad([found.mean, found.var], maps, gradients)

        return repeated(step, len(self.batch))

    def heads(self, contexts: int) -> Work:
        """Moments to a step of the heads: see `head_step`."""
        moments = Moments(*(moment.clone() for moment in self.moments()))
        return repeated(head_step(moments, contexts), len(self.batch))


def head_step(moments: Moments, contexts: int) -> Callable[[], None]:
    """One training step of K contexts' heads and judges on moments (n, D, C): forward, backward, Adam, projection."""
    config, device = fast(), moments.mean.device
    task = RankingTask(sample_rankings(contexts, NAMES, seed=0), config, device)
    ids = torch.arange(len(moments.mean))
    judgements = task.judgements(Batch({}, ids, len(ids)), epoch=0)
    trainee = Trainee(config, contexts, moments.mean.shape[-1:]).to(device)
    optimizer = torch.optim.Adam(trainee.parameters(), lr=config.learning_rate, betas=config.adam_betas, fused=True)
    steps = 0

    def step() -> None:
        nonlocal steps
        loss, _ = trainee(moments, judgements, dropout_generator(config.seed, steps, 0, device))
        loss.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        trainee.heads.project_()
        steps += 1

    return step
