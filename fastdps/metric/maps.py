"""Distance maps: distances before they are averaged over the image, as `lpips` returns them with `spatial=True`.

Shapes: n image pairs, L taps (twice as many for a comparison of two kinds), H x W the size of the images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdps.errors import ConfigError
from fastdps.metric.distances import normalized_vectors
from fastdps.metric.perceptual import PerceptualMetric


def distance_maps(metric: PerceptualMetric, x: Sequence[Tensor], y: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Return the distance map of each tap in the first context of the metric.

    The second part of a comparison of two kinds (`spatial+sort`) has no position: its distance is spread evenly.

    Args:
        metric: The metric.
        x: Feature maps (n, C_l, H_l, W_l) per tap.
        y: Feature maps of the same shapes.
        size: (H, W) to which the maps are upsampled (bilinear, corners not aligned).

    Returns:
        Maps (n, L, H, W). Their sum over L is the map of the distance.

    Raises:
        ConfigError: The comparison of the metric discards the position.
    """
    if "spatial" not in metric.comparison.split("+"):
        raise ConfigError(
            f"This metric compares by {metric.comparison}, which does not tell where images differ. Use a metric that "
            "was trained with --comparison spatial."
        )
    shapes = [feature.shape[2:] for feature in x]
    shapes *= len(metric.channels) // len(shapes)
    both = (normalized_vectors(features, metric.comparison) for features in (x, y))
    weights = metric.weights[0].float().split(list(metric.channels))
    maps: list[Tensor] = []
    for in_x, in_y, weight, shape in zip(*both, weights, shapes, strict=True):
        values = (in_x - in_y).square() @ weight  # (n, P)
        if len(maps) >= len(x):
            values = values.mean(dim=1, keepdim=True).expand(-1, math.prod(shape))
        placed = values.unflatten(1, shape)[:, None]
        maps.append(F.interpolate(placed, size=size, mode="bilinear", align_corners=False))
    return torch.cat(maps, dim=1)
