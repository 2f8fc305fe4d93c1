"""Where two images differ: distances before they are averaged over the image, as `lpips` has them with `spatial`.

Shapes: n image pairs, L taps (twice as many where two kinds are compared), H x W the images' size.
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
    """One map per tap, (n, L, H, W), in the metric's first context; their sum over L is the map of the distance.

    x and y are feature maps (n, C_l, H_l, W_l) per tap. Each tap's map is enlarged to `size` (bilinear, corners not
    aligned). What a comparison of two kinds (`spatial+sort`) compares without regard to place is spread evenly.

    Raises `ConfigError` for a comparison that has no place in it at all.
    """
    if "spatial" not in metric.comparison.split("+"):
        raise ConfigError(
            f"This metric compares by {metric.comparison}, which does not say where images differ. Use one that was "
            "trained with --comparison spatial."
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
