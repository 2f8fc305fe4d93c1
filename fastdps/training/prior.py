"""Keep the prior: hold the unadapted metric of a trained backbone to that of the pretrained one.

    first images of the set --> groups --> pretrained backbone: distances of all pairs, once
    each step: one group    --> trained backbone:    distances of the same pairs --> mean squared difference of logs

The unadapted metric has equal weights, so its distance is the squared Euclidean distance of two embeddings: the unit
vectors of all positions and channels. All pairs of a group are one matrix product, and the pretrained backbone computes
no features after the first step.

Shapes: G images of a group, P pairs of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing

import torch
from torch import Tensor

from fastdps.contexts.distortions import to_float
from fastdps.loading.loader import ShardLoader
from fastdps.loading.order import part_of
from fastdps.metric.distances import normalized_vectors
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.precision import Precision, autocast
from fastdps.runtime.processes import Processes
from fastdps.training.gathering import gathered

#: Images of a group, and most images of all groups.
GROUP, MOST_IMAGES = 50, 1000
#: Added to distances before their logarithm, in units of the mean distance of a group: equal images have distance 0.
FLOOR = 0.01


def embeddings(features: Sequence[Tensor], comparison: str) -> Tensor:
    """Return vectors (m, E) whose squared Euclidean distances are the unadapted distances of m images.

    Args:
        features: One tensor (m, C_l, H_l, W_l) per tap.
        comparison: One of `fastdps.metric.distances.COMPARISONS`.
    """
    vectors = normalized_vectors(features, comparison)
    return torch.cat([part.flatten(1) / math.sqrt(part.shape[1]) for part in vectors], dim=1)


def pair_distances(embedded: Tensor) -> Tensor:
    """Return the squared Euclidean distances (P,) of all pairs of embeddings (G, E), P = G (G - 1) / 2."""
    squares = embedded.square().sum(dim=1)
    first, second = torch.triu_indices(len(embedded), len(embedded), 1, device=embedded.device)
    products = (embedded @ embedded.T).flatten().index_select(0, first * len(embedded) + second)
    return (squares.index_select(0, first) + squares.index_select(0, second) - 2 * products).clamp_min(0)


def read_images(loader: ShardLoader, most: int = MOST_IMAGES) -> Tensor:
    """Return the first images of a set in packed order, or the references of its triplets, uint8 (n, H, W, 3)."""
    found: list[Tensor] = []
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            found.append(batch.components["image" if "image" in batch.components else "ref"].clone())
            if sum(map(len, found)) >= most:
                break
    return torch.cat(found)[:most]


class Prior:
    """The distances that a trained backbone is held to.

    Args:
        metric: The unadapted metric before the training.
        images: Images, uint8 (n, H, W, 3), at least two; the same on every process.
        processes: The processes that train together. Each embeds a part of a group.
        precision: Floating-point type of the backbone.
    """

    def __init__(
        self, metric: PerceptualMetric, images: Tensor, processes: Processes, precision: Precision = "auto"
    ) -> None:
        self._comparison, self._precision, self._processes = metric.comparison, precision, processes
        sizes = torch.arange(len(images)).tensor_split(math.ceil(len(images) / GROUP))
        self._groups = [images[part[0] : part[-1] + 1] for part in sizes]
        with torch.inference_mode():
            found = [pair_distances(self._embed(metric, number)) for number in range(len(self._groups))]
        self._floors = [float(distances.mean()) * FLOOR for distances in found]
        self._logs = [(d + floor).log().clone() for d, floor in zip(found, self._floors, strict=True)]

    def term(self, metric: PerceptualMetric, step: int) -> Tensor:
        """Return the mean squared difference of the logarithms of old and new distances in the group of a step, ().

        All processes call this together; each gets the whole term, and gradients for its own images.
        """
        number = step % len(self._groups)
        now = (pair_distances(self._embed(metric, number)) + self._floors[number]).log()
        return (now - self._logs[number]).square().mean()

    def _embed(self, metric: PerceptualMetric, number: int) -> Tensor:
        """Return the embeddings (G, E) of a group."""
        group, processes = self._groups[number], self._processes
        own = part_of(len(group), processes.process_index, processes.num_processes)
        images = to_float(group[own.start : own.stop].to(processes.device))
        with autocast(self._precision, processes.device):
            features = metric.backbone(images)
        return gathered(embeddings(features, self._comparison), len(group), processes)
