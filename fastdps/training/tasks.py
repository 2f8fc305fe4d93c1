"""Tasks: adapting to rankings of distortions, to judged triplets, or to a judgement set.

batch, epoch -- inputs() --> (n, 1 + D, 3, H, W), reference first      batch, epoch -- judgements() --> Judgements
                             or `GroupedImages` of a judgement set, or moments of a `KeptBatch`

Shapes: n images, D distorted versions of each, K contexts, T judged pairs per step; m images and P pairs of a group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastdps.contexts.crops import crop, draw_crops
from fastdps.contexts.distortions import NAMES, draw_plan, make_views, to_float
from fastdps.contexts.philox import uniforms
from fastdps.contexts.rankings import Ranking, labels, pairs
from fastdps.loading.spec import Batch
from fastdps.metric.distances import Moments
from fastdps.shards.format import COMPONENTS, Kind
from fastdps.training.prior import held_views
from fastdps.training.recipes import TrainConfig

#: Number of the first random stream that draws pairs; lower streams draw distortions.
PAIR_STREAMS = 1 << 16


@dataclass(frozen=True)
class Judgements:
    """Pairs of versions of each image to compare, with the votes on which is closer.

    Attributes:
        first: Index of the first version of each pair, int64 (T,) or (n, T, K). A vector serves all images and
            contexts.
        second: Index of the second version, in the same shape.
        votes: Share of votes for the second version as the closer one; broadcasts to (n, T, K).
        weights: Weight of the losses and accuracies of each row of the result, (n,), or of each row and context,
            (n, K); None for equal weights.
        are_labels: Votes are 0 or 1, (T, K), for pairs (T,), without weights.
    """

    first: Tensor
    second: Tensor
    votes: Tensor
    weights: Tensor | None = None
    are_labels: bool = False

    def pick(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two distances of each judgement: (n, D, K) to two (n, T, K)."""
        if self.first.dim() == 1:
            # Not by indexing, whose gradient is several times slower on a CPU.
            return distances.index_select(1, self.first), distances.index_select(1, self.second)
        return distances.gather(1, self.first), distances.gather(1, self.second)


class PairJudgements(Judgements):
    """Judgements of pairs of a group of images: `first` and `second` (T,) are pairs, `votes` is (T, 1, 1).

    Each judgement is a row of its own, (T, 1, K), so that it can have a weight.
    """

    def pick(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two distances of each judgement: (1, P, K) to two (T, 1, K)."""
        return distances[0].index_select(0, self.first)[:, None], distances[0].index_select(0, self.second)[:, None]


@dataclass(frozen=True)
class GroupedImages:
    """Images of a group of judgements, and the pairs of them that are compared.

    Attributes:
        images: The images of this process, float RGB in [0, 1], (m_r, 3, H, W).
        first: Position of one image of each pair among the m images of all processes, int64 (P,).
        second: Position of the other image, int64 (P,).
        images_of_all: Number of images of all processes, m.
    """

    images: Tensor
    first: Tensor
    second: Tensor
    images_of_all: int


@dataclass(frozen=True)
class KeptBatch(Batch):
    """A batch of images whose moments are known: the components are "mean" and "var", (n, D, C)."""

    @property
    def moments(self) -> Moments:
        """The moments of the batch."""
        return Moments(self.components["mean"], self.components["var"])


class Task(ABC):
    """A task that a metric is adapted to.

    Attributes:
        kind: Kind of the shard sets that the task reads.
        rankings: The contexts; empty for judgements, which are one context without a name.
        divides_images: Processes divide the images of a step, and each computes the loss of all its judgements. False
            where they divide samples, each with its own loss.
        is_calibrated: The adapted metric includes the temperature of the logistic judge, so that the sigmoid of
            d0 - d1 is the probability that 1 is closer.
    """

    kind: ClassVar[Kind]
    divides_images: ClassVar[bool] = False
    is_calibrated: ClassVar[bool] = False
    rankings: Sequence[Ranking] = ()

    @property
    def contexts(self) -> int:
        """The number of contexts, K."""
        return max(1, len(self.rankings))

    @property
    def components(self) -> tuple[str, ...]:
        """The components of a sample that the task needs."""
        return COMPONENTS[self.kind]

    @property
    @abstractmethod
    def judgements_per_image(self) -> int:
        """The number of judgements, T, per image or triplet, context and epoch."""

    def inputs(self, batch: Batch, epoch: int) -> Tensor | GroupedImages | Moments:
        """Return the input of the model: views, the images of a group of judgements, or moments that were kept."""
        return batch.moments if isinstance(batch, KeptBatch) else self.views(batch, epoch)

    @abstractmethod
    def views(self, batch: Batch, epoch: int) -> Tensor:
        """Return the references and their D versions, float RGB in [0, 1]: (n, 1 + D, 3, H, W)."""

    @abstractmethod
    def judgements(self, batch: Batch, epoch: int) -> Judgements:
        """Return the pairs to compare in this batch, with their votes."""

    def held_views(self, batch: Batch, epoch: int) -> Tensor | None:  # noqa: ARG002
        """Return the views whose distances the prior holds, see `fastdps.training.prior`; None for a group."""
        return None


class RankingTask(Task):
    """Adapt to rankings of the distortions, with new distortions for every image in every epoch."""

    kind = "images"

    def __init__(self, rankings: Sequence[Ranking], config: TrainConfig, device: torch.device) -> None:
        self.rankings = tuple(rankings)
        self._config = config
        self._first, self._second = pairs(len(NAMES)).to(device).unbind(dim=1)
        self._votes = labels(self.rankings, NAMES).to(device)

    @property
    def judgements_per_image(self) -> int:
        """The number of pairs per image: all of them, or one."""
        return 1 if self._config.pairs == "one" else len(self._first)

    def views(self, batch: Batch, epoch: int) -> Tensor:
        """Return each image, or a crop of it, with its distorted versions."""
        plan = draw_plan(batch.draw_ids, seed=self._config.seed, epoch=epoch).to(batch.images.device)
        return make_views(
            _augmented(batch.images, batch.draw_ids, epoch, self._config), plan, self._config.interpolation
        )

    def held_views(self, batch: Batch, epoch: int) -> Tensor:
        """Return some of the distorted versions, drawn by counter."""
        drawn = held_views(batch.draw_ids, len(NAMES), seed=self._config.seed, epoch=epoch)
        return drawn.to(self._votes.device)

    def judgements(self, batch: Batch, epoch: int) -> Judgements:
        """Return all pairs for all contexts, or one pair per image and context in random order, drawn by counter."""
        if self._config.pairs == "all":
            return Judgements(self._first, self._second, self._votes, are_labels=True)
        drawn = uniforms(self._config.seed, epoch, batch.draw_ids, self.contexts, first_stream=PAIR_STREAMS)
        drawn = drawn.to(self._votes.device)
        pair = (drawn[..., 0] * len(self._first)).long()[:, None]  # (n, 1, K)
        swapped = (drawn[..., 1] < 0.5)[:, None]
        first, second = self._first[pair], self._second[pair]
        votes = self._votes.expand(len(pair), -1, -1).gather(1, pair)
        return Judgements(
            torch.where(swapped, second, first),
            torch.where(swapped, first, second),
            torch.where(swapped, 1 - votes, votes),
        )


class JudgementTask(Task):
    """Adapt to triplets judged by people: BAPPS, or the user's own."""

    kind = "triplets"

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._config = config
        self._first, self._second = torch.tensor([0], device=device), torch.tensor([1], device=device)

    @property
    def judgements_per_image(self) -> int:
        """One judgement per triplet."""
        return 1

    def views(self, batch: Batch, epoch: int) -> Tensor:
        """Return reference, p0 and p1, or the same crop of all three."""
        names = ("ref", "p0", "p1")
        return torch.stack(
            [_augmented(batch.components[name], batch.draw_ids, epoch, self._config) for name in names], dim=1
        )

    def held_views(self, batch: Batch, epoch: int) -> Tensor:  # noqa: ARG002
        """Return all three images."""
        return torch.arange(3, device=self._first.device).expand(len(batch.ids), -1)

    def judgements(self, batch: Batch, epoch: int) -> Judgements:  # noqa: ARG002
        """Return one pair per triplet, p0 and p1, with the share of votes for p1."""
        return Judgements(self._first, self._second, batch.components["judge"][:, None, None])


def _augmented(images: Tensor, ids: Tensor, epoch: int, config: TrainConfig) -> Tensor:
    """Return images uint8 (n, H, W, 3) as float (n, 3, H, W), cropped if the settings say so."""
    floats = to_float(images)
    if config.augment == "none":
        return floats
    plan = draw_crops(ids, seed=config.seed, epoch=epoch).to(floats.device)
    return crop(floats, plan, config.crop_size or min(floats.shape[-2:]))
