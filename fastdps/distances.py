"""Distances of deep features, as moments per channel. Pure functions.

    features of 1 + D views -- unit-normalise, square the difference --> z -- pool over space --> mean, var

Shapes: n images, D distorted versions of each, C_l channels and H_l x W_l positions of tap l, C = sum of C_l.
Source: Zhang et al. 2018 (LPIPS), section 3; the second moment is ours, for dropout in closed form (see `heads`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: LPIPS's guard against division by zero.
EPSILON = 1e-10


class Moments(NamedTuple):
    """What the heads need to know of the squared differences z of one image pair, per channel.

    mean: average of z over the positions. var: sum of z^2 over the positions, divided by their number squared; times
    p / (1 - p) it is the variance that dropout with probability p on every element of z gives to `mean`.
    Both (n, D, C) float32.
    """

    mean: Tensor
    var: Tensor


def unit_normalize(features: Tensor) -> Tensor:
    """Scale the feature vector at every position to length one: (m, C_l, H_l, W_l), zero vectors stay zero.

    Equal to LPIPS's, with the difference that the gradient at a zero vector is zero and not NaN.
    """
    squared = features.square().sum(dim=1, keepdim=True)
    return features / (squared.clamp_min(EPSILON**2).sqrt() + EPSILON)


def spatial_moments(features: Sequence[Tensor], distorted: int) -> Moments:
    """Compare each reference with its distorted versions, position by position.

    features: one (n * (1 + D), C_l, H_l, W_l) per tap; of each 1 + D consecutive maps the first is the reference's
    and the others those of its D = `distorted` versions. Raises `ValueError` if their number does not divide.
    """
    means, variances = [], []
    for feature in features:
        maps, _, height, width = feature.shape
        if maps % (1 + distorted):
            raise ValueError(f"{maps} feature maps cannot be groups of one reference and {distorted} distorted")
        normalized = unit_normalize(feature.float())
        views = normalized.unflatten(0, (maps // (1 + distorted), 1 + distorted))
        z = (views[:, 1:] - views[:, :1]).square()
        positions = height * width
        means.append(z.mean(dim=(3, 4)))
        variances.append(z.square().sum(dim=(3, 4)) / positions**2)
    return Moments(torch.cat(means, dim=-1), torch.cat(variances, dim=-1))
