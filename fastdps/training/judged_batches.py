"""Batches of judged images: each step has the images of a group of judgements, each image once.

    groups of an epoch --> images of this process, uint8 (m_r, H, W, 3), with pairs and judgements of the whole group

Processes divide the images of a group, and each has all of its judgements.
Shapes: m images, P distinct pairs and T judgements of a group, of which m_r images are on this process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdps.contexts.judgements import JudgedPairs
from fastdps.loading.order import part_of
from fastdps.loading.spec import Batch
from fastdps.training.judged_groups import ImageGroup, JudgedGroups
from fastdps.training.kept_images import KeptImages
from fastdps.training.numbered_batches import NumberedBatches


@dataclass(frozen=True)
class JudgedBatch(Batch):
    """A group of judgements, and this process's part of its images. Samples are judgements.

    The components are "image", uint8 (m_r, H, W, 3); "first" and "second", the images of each pair as positions among
    the m images of the group, int64 (P,); "pair_a" and "pair_b", the pairs of each judgement, and "judge", the number
    of its judge, int64 (T,); "share" and "weight", float32 (T,).

    Attributes:
        images_of_all: Number of images of all processes, m.
        mean_size: Mean number of judgements in a step, by which the loss is divided.
    """

    images_of_all: int
    mean_size: float

    @property
    def global_images(self) -> int:
        """The number of images of all processes."""
        return self.images_of_all

    @property
    def loss_size(self) -> float:
        """The mean number of judgements in a step.

        It is the same in all steps, so that each judgement counts by its votes, whatever group it is in.
        """
        return self.mean_size


class JudgedBatches(NumberedBatches):
    """A judgement set as batches of images, by number of their group in the epoch.

    Args:
        judged: The judgements.
        images: The images at `judged.ids`.
        most_images: Most images in a step, over all processes.
        seed: Seed of the groups.
        rank: Index of this process.
        world_size: Number of processes that train together.
        device: Device of the batches.

    Attributes:
        samples: Number of judgements.
        steps: Number of steps of an epoch.

    Raises:
        ConfigError: `most_images` is below three, or there are no judgements.
    """

    def __init__(
        self,
        judged: JudgedPairs,
        images: KeptImages,
        *,
        most_images: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self._judged, self._kept = judged, images
        self._groups = JudgedGroups(judged.images, most_images, seed)
        self._rank, self._world_size, self._device = rank, world_size, device or torch.device("cpu")
        self._weights = judged.votes / judged.votes.mean()
        self.samples, self.steps = len(judged), self._groups.steps

    def _batches_of(self, epoch: int) -> Callable[[int], JudgedBatch]:
        groups = self._groups.epoch(epoch)
        return lambda number: self._batch(groups[number])

    def _batch(self, group: ImageGroup) -> JudgedBatch:
        judged = self._judged
        pairs, places = np.unique(
            np.stack([judged.first[group.judgements], judged.second[group.judgements]]), return_inverse=True
        )
        both = np.searchsorted(group.images, judged.pairs[pairs])
        pair_a, pair_b = places.reshape(2, -1)
        part = part_of(len(group.images), self._rank, self._world_size)
        own = group.images[part.start : part.stop]
        indices = {"first": both[:, 0], "second": both[:, 1], "pair_a": pair_a, "pair_b": pair_b}
        indices["judge"] = judged.judge[group.judgements]
        values = {"share": judged.share[group.judgements], "weight": self._weights[group.judgements]}
        components: dict[str, Tensor] = {
            "image": self._kept.of(own),
            **{name: torch.from_numpy(index.copy()) for name, index in indices.items()},
            **{name: torch.from_numpy(value).float() for name, value in values.items()},
        }
        return JudgedBatch(
            {name: tensor.to(self._device) for name, tensor in components.items()},
            torch.from_numpy(judged.ids[own]),
            len(group.judgements),
            images_of_all=len(group.images),
            mean_size=self.samples / self.steps,
        )
