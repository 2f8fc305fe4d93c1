"""Features of images of a base metric, computed once, from which the moments of any pairs come.

    images (n, 3, H, W) --backbone, unit vectors--> KeptFeatures --pairs (i, j)--> moments (P, C) --heads--> distances

Shapes: n images, P pairs, C channels of all taps, K contexts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdps.metric.distances import distances, normalized_vectors, pair_means
from fastdps.metric.inputs import to_unit_range
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.training.kept_arrays import kept_array
from fastdps.training.options import MomentLimits
from fastdps.training.pair_moments import MomentMatrix

#: Images whose features are computed at a time.
BATCH = 32


class KeptFeatures:
    """The features of n images under a frozen backbone.

    They are kept in memory up to `limits.memory`, and beyond it in a file that disappears with this process.

    Args:
        metric: The base metric, with any number of contexts.
        images: Images (n, 3, H, W), RGB float in [0, 1] or uint8.
        limits: Limits of memory and disk space.
        on_images: Called after each batch with the number of images so far.

    Raises:
        FastDPSError: The disk is full.

    Example:
        >>> features = KeptFeatures(metric, images)  # doctest: +SKIP
        >>> features.distances(metric.weights, [0, 0], [1, 2]).shape  # doctest: +SKIP
        torch.Size([2, 1])
    """

    def __init__(
        self,
        metric: PerceptualMetric,
        images: Tensor,
        *,
        limits: MomentLimits | None = None,
        on_images: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.metric = metric
        self._parts: list[Tensor] = []
        limits = limits or MomentLimits()
        for start in range(0, len(images), BATCH):
            vectors = self._vectors(images[start : start + BATCH])
            if not self._parts:
                self._parts = _allocate(vectors, len(images), limits)
            for part, new in zip(self._parts, vectors, strict=True):
                part[start : start + len(new)] = new
            on_images(min(start + BATCH, len(images)))
        self._count = len(images)

    def __len__(self) -> int:
        return self._count

    @property
    def channels(self) -> int:
        """The number of channels of all taps, C."""
        return sum(self.metric.channels)

    @torch.no_grad()
    def moments(self, first: Tensor | NDArray[np.int64], second: Tensor | NDArray[np.int64]) -> Tensor:
        """Return the first moments of pairs of images: `metric.moments` of the same pairs, up to rounding.

        Args:
            first: Index of one image of each pair, int64 (P,).
            second: Index of the other image, int64 (P,).

        Returns:
            Moments (P, C) float32 on the metric's device.
        """
        device = self.metric.weights.device
        i, j = (torch.as_tensor(index, dtype=torch.int64) for index in (first, second))
        if not len(i):
            return torch.empty(0, self.channels, device=device)
        return pair_means(self._parts, i, self._parts, j).to(device)

    def matrix(self, pairs: NDArray[np.int64]) -> MomentMatrix:
        """Return the moments of pairs (P, 2) of images, for `fit_few`."""
        return MomentMatrix(self.moments(pairs[:, 0], pairs[:, 1]))

    def distances(
        self, weights: Tensor, first: Tensor | NDArray[np.int64], second: Tensor | NDArray[np.int64]
    ) -> Tensor:
        """Return the distances (P, K) of pairs of images, of channel weights (K, C)."""
        return distances(weights, self.moments(first, second))

    @torch.no_grad()
    def _vectors(self, images: Tensor) -> list[Tensor]:
        """Return the unit vectors of a batch."""
        own = self.metric.backbone.mean
        features = self.metric.backbone(to_unit_range(images, own.device, own.dtype))
        return normalized_vectors(features, self.metric.comparison)


def _allocate(vectors: list[Tensor], count: int, limits: MomentLimits) -> list[Tensor]:
    """Return room for the vectors of `count` images: in memory, or beyond the limit in a file without a name."""
    shapes = [(count, *part.shape[1:]) for part in vectors]
    if sum(map(math.prod, shapes)) * torch.float32.itemsize <= limits.memory:
        return [part.new_empty(shape) for part, shape in zip(vectors, shapes, strict=True)]
    return [torch.from_numpy(kept_array(shape, np.float32, "disk", limits.directory)) for shape in shapes]
