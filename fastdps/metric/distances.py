"""Distances of deep features, as moments per channel. Pure functions.

    features of 1 + D views -- comparison --> vectors -- unit-normalise, square the difference --> z
                                                                      z -- pool over positions --> mean, var

A comparison says which vectors are compared, and at how many positions:

    spatial         the channel vectors at the same position of both maps
    mean            the channel averages over the map: one position
    sort            the values of each channel in ascending order, rank by rank, wherever they are in the map
    spatial+mean    both; the taps of the second follow the taps of the first
    spatial+sort    likewise

Averaging and sorting precede the unit normalisation, as in the code of the paper.

Shapes: n images, D distorted versions of each, m = n (1 + D) views, C_l channels and H_l x W_l positions of tap l,
P positions of a comparison, C = sum of C_l over all taps and comparisons.
Source: Zhang et al. 2018 (LPIPS), section 3; Pihlgren et al. 2023. The second moment is added here, for dropout in
closed form (see `fastdps.metric.heads`).
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
#: On a CPU, bytes of a tap that are compared at a time, so that intermediate results stay in the cache.
CHUNK_BYTES = 2**21
#: On a CPU, number of contexts from which the matrix product is computed as a convolution.
CONVOLVED_CONTEXTS = 64


class Moments(NamedTuple):
    """Moments per channel of the squared differences z of image pairs. Both are (n, D, C) float32.

    Attributes:
        mean: Mean of z over the positions.
        var: Sum of z^2 over the positions, divided by the square of their number. Times p / (1 - p) it is the variance
            of `mean` under dropout with probability p on every element of z.
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
    # Ten times faster than torch's sort, which also computes the indices.
    rows = np.sort(vectors.detach().transpose(1, 2).contiguous().numpy(), axis=2)
    return torch.from_numpy(rows).transpose(1, 2).contiguous()


#: The functions of each comparison that map the vectors of a tap, (m, H_l W_l, C_l), to the compared ones, (m, P, C_l).
#: Each function is applied to all taps.
COMPARISONS: Mapping[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "spatial": (_unchanged,),
    "mean": (_averaged,),
    "sort": (_sorted,),
    "spatial+mean": (_unchanged, _averaged),
    "spatial+sort": (_unchanged, _sorted),
}


def compared_channels(channels: Sequence[int], comparison: str) -> tuple[int, ...]:
    """Return the channels of every tap in the order of `Moments`.

    Args:
        channels: The channels of the backbone's taps.
        comparison: One of `COMPARISONS`.

    Raises:
        ConfigError: The comparison is unknown.
    """
    return tuple(channels) * len(_vectors_of(comparison))


def unit_normalize(features: Tensor, dim: int = 1) -> Tensor:
    """Scale the feature vectors along `dim` to length one; zero vectors stay zero.

    Equal to LPIPS's normalisation, except that the gradient at a zero vector is zero instead of NaN.
    """
    lengths = torch.linalg.vector_norm(features, dim=dim, keepdim=True)
    return features / (lengths.clamp_min(EPSILON) + EPSILON)


def moments(features: Sequence[Tensor], distorted: int, comparison: str = "spatial") -> Moments:
    """Compare each reference with its distorted versions.

    Args:
        features: One tensor (n * (1 + D), C_l, H_l, W_l) per tap. Of each 1 + D consecutive maps the first belongs to
            the reference and the others to its distorted versions.
        distorted: D.
        comparison: One of `COMPARISONS`.

    Returns:
        Moments (n, D, C).

    Raises:
        ValueError: The number of maps is not divisible by 1 + D.
        ConfigError: The comparison is unknown.
    """
    taps = [
        _tap_moments(feature, 1 + distorted, vectors_of)
        for vectors_of in _vectors_of(comparison)
        for feature in features
    ]
    return Moments(*(torch.cat(parts, dim=-1) for parts in zip(*taps, strict=True)))


def means_between(first: Sequence[Tensor], second: Sequence[Tensor], comparison: str = "spatial") -> Tensor:
    """Compute the first moments of image pairs from the features of two batches; one may be without gradients.

    Args:
        first: Features of one image of each pair, (n, C_l, H_l, W_l) per tap.
        second: Features of the other images.
        comparison: One of `COMPARISONS`.

    Returns:
        The mean of z over the positions, (n, C): `Moments.mean` of the same pairs.

    Raises:
        ConfigError: The comparison is unknown.
    """
    vectors = (normalized_vectors(features, comparison) for features in (first, second))
    return torch.cat([(one - other).square().mean(dim=1) for one, other in zip(*vectors, strict=True)], dim=1)


def pair_means(vectors: Sequence[Tensor], first: Tensor, other_vectors: Sequence[Tensor], second: Tensor) -> Tensor:
    """Compute the first moments of image pairs from the vectors of single images.

    Args:
        vectors: Vectors of `normalized_vectors`, (m, P, C_l) per tap.
        first: Index in `vectors` of one image of each pair, int64 (n,).
        other_vectors: Vectors of the other images; they may be the same.
        second: Index in `other_vectors` of the other image, int64 (n,).

    Returns:
        The mean of z over the positions, (n, C): `Moments.mean` of the same pairs.
    """
    parts = []
    for own, other in zip(vectors, other_vectors, strict=True):
        pair_bytes = own[:1].numel() * own.element_size()
        chunk = max(1, len(first))
        if own.device.type == "cpu":
            chunk = max(1, CHUNK_BYTES // max(1, pair_bytes))
        of_tap = [
            (own[i] - other[j]).square_().sum(dim=1)
            for i, j in zip(first.split(chunk), second.split(chunk), strict=True)
        ]
        parts.append(torch.cat(of_tap).div_(own.shape[1]))
    return torch.cat(parts, dim=1)


def group_moments(vectors: Sequence[Tensor], first: Tensor, second: Tensor, *, with_variance: bool = True) -> Moments:
    """Compute the moments of image pairs from the vectors of single images, with gradients for these.

    Where many pairs share few images, the sums of squared differences are computed from scalar products, channel by
    channel: sum (x - y)^2 = sum x^2 + sum y^2 - 2 sum x y. This takes memory for all pairs of the images, but not for
    the differences of each pair at each position. Rounding is relative to the vectors, whose length is one, instead of
    their difference.

    Args:
        vectors: Vectors of `normalized_vectors`, (m, P, C_l) per tap, float32.
        first: Index of one image of each pair, int64 (n,).
        second: Index of the other image, int64 (n,).
        with_variance: Compute `Moments.var` too, which is zero otherwise.

    Returns:
        Moments (1, n, C).
    """
    means, variances = [], []
    for own in vectors:
        images, positions = own.shape[:2]
        if len(first) * positions <= images**2:
            z = (own.index_select(0, first) - own.index_select(0, second)).square()
            sums, squares = z.sum(dim=1), z.square().sum(dim=1) if with_variance else None
        else:
            sums, squares = _sums_by_products(own, first, second, with_variance=with_variance)
        means.append(sums / positions)
        variances.append(torch.zeros_like(sums) if squares is None else squares / positions**2)
    return Moments(torch.cat(means, dim=1)[None], torch.cat(variances, dim=1)[None])


def _sums_by_products(
    vectors: Tensor, first: Tensor, second: Tensor, *, with_variance: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the sums (n, C_l) over positions of z and, if wanted, of z^2 of image pairs: see `group_moments`."""
    x = vectors.permute(2, 0, 1).contiguous()  # (C_l, m, P)
    place = first * len(vectors) + second

    def products(a: Tensor, b: Tensor) -> Tensor:
        """Return the scalar products (n, C_l) of the pairs."""
        return torch.bmm(a, b.transpose(1, 2)).flatten(1).index_select(1, place).T

    def of_both(a: Tensor) -> Tensor:
        """Return the sum of a quantity (C_l, m) over the images of each pair, (n, C_l)."""
        return (a.index_select(1, first) + a.index_select(1, second)).T

    square = x.square()
    sums = (of_both(square.sum(dim=2)) - 2 * products(x, x)).clamp_min(0)
    if not with_variance:
        return sums, None
    cube = square * x
    mixed = products(cube, x) + products(x, cube)
    squares = of_both(square.square().sum(dim=2)) - 4 * mixed + 6 * products(square, square)
    return sums, squares.clamp_min(0)


def distances(weights: Tensor, mean: Tensor) -> Tensor:
    """Return the distances in every context, (..., K), of weights (K, C) and first moments (..., C)."""
    return weighted_sums(weights, mean)


def weighted_sums(weights: Tensor, moments: Tensor) -> Tensor:
    """Return the matrix product (..., K) of weights (K, C) and moments (..., C).

    On a CPU torch multiplies matrices with MKL and convolves with oneDNN, which is up to twice as fast on AMD
    processors. So for many contexts the product is a 1 x 1 convolution of a channels-last image whose pixels are the
    moments.
    """
    rows = moments.numel() // max(1, moments.shape[-1])
    if moments.device.type != "cpu" or rows == 0 or len(weights) < CONVOLVED_CONTEXTS:
        return moments @ weights.T
    image = moments.reshape(1, 1, rows, -1).permute(0, 3, 1, 2)
    return F.conv2d(image, weights[:, :, None, None]).permute(0, 2, 3, 1).reshape(*moments.shape[:-1], -1)


def normalized_vectors(features: Sequence[Tensor], comparison: str = "spatial") -> list[Tensor]:
    """Return the unit vectors whose squared differences `moments` averages: for single images instead of pairs.

    Args:
        features: One tensor (m, C_l, H_l, W_l) per tap.
        comparison: One of `COMPARISONS`.

    Returns:
        Vectors (m, P, C_l) per tap, in the order of `Moments`.

    Raises:
        ConfigError: The comparison is unknown.
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
    """Return the moments (n, D, C_l) of one tap (n * views, C_l, H_l, W_l), computed in chunks of images."""
    maps = len(feature)
    if maps % views:
        raise ValueError(f"{maps} feature maps are not groups of one reference and {views - 1} distorted versions")
    chunk = max(maps, views)
    if feature.device.type == "cpu":
        map_bytes = feature[:1].numel() * torch.float32.itemsize
        chunk = views * max(1, CHUNK_BYTES // max(1, views * map_bytes))
    # Channels last, as most maps already are in memory, so that the following operations run over contiguous rows.
    vectors = feature.permute(0, 2, 3, 1).flatten(1, 2)
    parts = [_chunk_moments(vectors_of(part.float().contiguous()), views) for part in vectors.split(chunk)]
    return Moments(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _chunk_moments(vectors: Tensor, views: int) -> Moments:
    """Return the moments (n, D, C_l) of vectors (n * views, P, C_l)."""
    normalized = unit_normalize(vectors, dim=2).unflatten(0, (len(vectors) // views, views))
    reference, others = normalized[:, :1], normalized[:, 1:]
    # In-place operations save memory traffic, but cost more than they save where gradients are needed.
    z = (others - reference if normalized.requires_grad else others.sub_(reference)).square_()
    positions = z.shape[2]
    mean = z.sum(dim=2) / positions
    return Moments(mean, z.square_().sum(dim=2) / positions**2)
