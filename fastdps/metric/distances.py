"""Distances of deep features, as moments per channel. Pure functions.

    features of 1 + D views -- comparison --> vectors -- unit-normalise, square the difference --> z
                                                                      z -- pool over positions --> mean, var

A comparison says which vectors are compared, and at how many positions:

    spatial         the channels at each place of the map, with those at the same place
    mean            the averages of the channels over the map: one position
    sort            each channel's values in ascending order, rank by rank: the same values, wherever they are
    spatial+mean    both, the second as further taps behind those of the first
    spatial+sort    likewise

Averaging and sorting come before the unit normalisation, as in the code of the source.

Shapes: n images, D distorted versions of each, m = n (1 + D) views, C_l channels and H_l x W_l positions of tap l,
P positions of a comparison, C = sum of C_l over all taps and comparisons.
Source: Zhang et al. 2018 (LPIPS), section 3; Pihlgren et al. 2023; the second moment is ours, for dropout in closed
form (see `heads`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastdps.errors import ConfigError, did_you_mean

#: LPIPS's guard against division by zero.
EPSILON = 1e-10
#: On a CPU, how much of a tap is compared at a time, so that what is in between stays in its cache.
CHUNK_BYTES = 2**21
#: On a CPU, contexts from which on their matrix product is computed as a convolution.
CONVOLVED_CONTEXTS = 64


class Moments(NamedTuple):
    """What the heads need to know of the squared differences z of one image pair, per channel.

    mean: average of z over the positions. var: sum of z^2 over the positions, divided by their number squared; times
    p / (1 - p) it is the variance that dropout with probability p on every element of z gives to `mean`.
    Both (n, D, C) float32.
    """

    mean: Tensor
    var: Tensor


def _unchanged(vectors: Tensor) -> Tensor:
    return vectors


def _averaged(vectors: Tensor) -> Tensor:
    return vectors.mean(dim=1, keepdim=True)


def _sorted(vectors: Tensor) -> Tensor:
    if vectors.device.type != "cpu" or (vectors.requires_grad and torch.is_grad_enabled()):
        return vectors.sort(dim=1).values
    # Ten times faster than torch's, which also finds out where each value was.
    rows = np.sort(vectors.detach().transpose(1, 2).contiguous().numpy(), axis=2)
    return torch.from_numpy(rows).transpose(1, 2).contiguous()


#: Each comparison as the functions, (m, H_l W_l, C_l) to (m, P, C_l), that make its vectors; every one sees all taps.
COMPARISONS: Mapping[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "spatial": (_unchanged,),
    "mean": (_averaged,),
    "sort": (_sorted,),
    "spatial+mean": (_unchanged, _averaged),
    "spatial+sort": (_unchanged, _sorted),
}


def compared_channels(channels: Sequence[int], comparison: str) -> tuple[int, ...]:
    """The channels of every tap, in the order of `Moments`, given those of the backbone's taps.

    Raises `ConfigError` for a comparison that is not one of `COMPARISONS`.
    """
    return tuple(channels) * len(_vectors_of(comparison))


def unit_normalize(features: Tensor, dim: int = 1) -> Tensor:
    """Scale the feature vectors along `dim` to length one; zero vectors stay zero.

    Equal to LPIPS's, with the difference that the gradient at a zero vector is zero and not NaN.
    """
    lengths = torch.linalg.vector_norm(features, dim=dim, keepdim=True)
    return features / (lengths.clamp_min(EPSILON) + EPSILON)


def moments(features: Sequence[Tensor], distorted: int, comparison: str = "spatial") -> Moments:
    """Compare each reference with its distorted versions.

    features: one (n * (1 + D), C_l, H_l, W_l) per tap; of each 1 + D consecutive maps the first is the reference's
    and the others those of its D = `distorted` versions. Raises `ValueError` if their number does not divide, and
    `ConfigError` for an unknown comparison.
    """
    taps = [
        _tap_moments(feature, 1 + distorted, vectors_of)
        for vectors_of in _vectors_of(comparison)
        for feature in features
    ]
    return Moments(*(torch.cat(parts, dim=-1) for parts in zip(*taps, strict=True)))


def distances(weights: Tensor, mean: Tensor) -> Tensor:
    """Distances in every context: weights (K, C) and channel means (..., C) give (..., K)."""
    return weighted_sums(weights, mean)


def weighted_sums(weights: Tensor, moments: Tensor) -> Tensor:
    """Matrix product of weights (K, C) and moments (..., C): (..., K).

    On a CPU torch multiplies matrices with MKL, which on AMD's is up to half as fast as oneDNN, with which it
    convolves. So there many contexts are a 1 x 1 convolution of one image, channels last, whose pixels are the moments.
    """
    rows = moments.numel() // max(1, moments.shape[-1])
    if moments.device.type != "cpu" or rows == 0 or len(weights) < CONVOLVED_CONTEXTS:
        return moments @ weights.T
    image = moments.reshape(1, 1, rows, -1).permute(0, 3, 1, 2)
    return F.conv2d(image, weights[:, :, None, None]).permute(0, 2, 3, 1).reshape(*moments.shape[:-1], -1)


def normalized_vectors(features: Sequence[Tensor], comparison: str = "spatial") -> list[Tensor]:
    """The unit vectors (m, P, C_l) whose squared differences `moments` averages, in its order of taps.

    features: (m, C_l, H_l, W_l) per tap. For one that needs vectors of single images and not the moments of pairs.
    """
    return [
        unit_normalize(vectors_of(feature.permute(0, 2, 3, 1).flatten(1, 2).float()), dim=2)
        for vectors_of in _vectors_of(comparison)
        for feature in features
    ]


def _vectors_of(comparison: str) -> tuple[Callable[[Tensor], Tensor], ...]:
    try:
        return COMPARISONS[comparison]
    except KeyError:
        hint = did_you_mean(comparison, COMPARISONS)
        raise ConfigError(f"Unknown comparison {comparison!r}.{hint} Known: {', '.join(COMPARISONS)}.") from None


def _tap_moments(feature: Tensor, views: int, vectors_of: Callable[[Tensor], Tensor]) -> Moments:
    """Moments (n, D, C_l) of one tap (n * views, C_l, H_l, W_l), some images at a time."""
    maps = len(feature)
    if maps % views:
        raise ValueError(f"{maps} feature maps cannot be groups of one reference and {views - 1} distorted")
    chunk = max(maps, views)
    if feature.device.type == "cpu":
        map_bytes = feature[:1].numel() * torch.float32.itemsize
        chunk = views * max(1, CHUNK_BYTES // max(1, views * map_bytes))
    # Channels last, as most maps are in memory and the others are made, so that all that follows works on whole rows.
    vectors = feature.permute(0, 2, 3, 1).flatten(1, 2)
    parts = [_chunk_moments(vectors_of(part.float().contiguous()), views) for part in vectors.split(chunk)]
    return Moments(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _chunk_moments(vectors: Tensor, views: int) -> Moments:
    """Moments (n, D, C_l) of the vectors (n * views, P, C_l) of some images."""
    normalized = unit_normalize(vectors, dim=2).unflatten(0, (len(vectors) // views, views))
    reference, others = normalized[:, :1], normalized[:, 1:]
    # In place saves memory traffic; a gradient through it would cost more than that.
    z = (others - reference if normalized.requires_grad else others.sub_(reference)).square_()
    positions = z.shape[2]
    mean = z.sum(dim=2) / positions
    return Moments(mean, z.square_().sum(dim=2) / positions**2)
