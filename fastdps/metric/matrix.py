"""Distances of all pairs of images, with the features of each image computed once.

    images --backbone, unit vectors times sqrt(weight / positions)--> a (n, F)    d(i, j) = |a_i - a_j|^2

|a_i|^2 + |a_j|^2 - 2 a_i . a_j is one matrix product for all pairs, but suffers from cancellation. Three measures keep
it accurate: the mean is subtracted from the vectors, which changes no distance and makes the numbers small; the product
is accumulated piece by piece in float64; and distances that are small even so, of near copies, are computed from the
difference of the vectors.

Shapes: n images, F = channels times positions, summed over all taps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastdps.errors import ConfigError
from fastdps.metric.distances import normalized_vectors
from fastdps.metric.inputs import to_unit_range
from fastdps.metric.perceptual import PerceptualMetric

#: Distances below this share of |a_i|^2 + |a_j|^2 are computed from the difference. Above it the relative error of the
#: product is about 1e-4.
NEAR = 1e-3
#: Elements of the vectors that are summed in float32 at a time: the relative error is 4e-7, and 2e-5 for all at once.
PIECE = 4096
#: Images whose features are computed at a time, if memory allows.
BATCH = 32
#: Upper bound of the memory of a backbone's maps per image, in multiples of its vector: inputs, outputs and copies.
OVERHEAD = 8


@torch.no_grad()
def distances_between(metric: PerceptualMetric, images: Tensor, others: Tensor, *, memory_bytes: int) -> Tensor:
    """Return the distances of each image to each of others, (n, m), in one context.

    The vectors of a block of images stay in memory while the others pass by in blocks.

    Args:
        metric: A metric with one context and non-negative weights.
        images: Images (n, 3, H, W).
        others: Images (m, 3, H, W) of the same size.
        memory_bytes: Approximate memory limit, in addition to the images and the result.

    Raises:
        ConfigError: The metric has several contexts or negative weights.
    """
    _require_one_context(metric)
    first = vectors(metric, images[:1])
    row_bytes = first.numel() * first.element_size()
    batch = max(1, min(BATCH, memory_bytes // (2 * OVERHEAD * row_bytes)))
    block = max(1, (memory_bytes - batch * OVERHEAD * row_bytes) // row_bytes // 2)
    result = first.new_zeros(len(images), len(others))
    for top in range(0, len(images), block):
        rows = _block(metric, images[top : top + block], batch)
        for left in range(0, len(others), block):
            columns = _block(metric, others[left : left + block], batch)
            centre = columns.mean(dim=0)
            result[top : top + block, left : left + block] = _squared_distances(
                rows - centre, columns.sub_(centre), memory_bytes
            )
    return result


@torch.no_grad()
def embeddings(metric: PerceptualMetric, images: Tensor) -> Tensor:
    """Return vectors (n, F) of images whose squared Euclidean distances are the metric's, a few images at a time."""
    _require_one_context(metric)
    return _block(metric, images, BATCH)


def _require_one_context(metric: PerceptualMetric) -> None:
    if len(metric.weights) != 1 or not (metric.weights >= 0).all():
        raise ConfigError("A distance matrix needs a metric in one context, with weights that are at least 0.")


@torch.no_grad()
def distance_matrix(metric: PerceptualMetric, images: Tensor, *, memory_bytes: int) -> Tensor:
    """Return the distances of all pairs of images in one context.

    If the vectors of all images fit into `memory_bytes`, features are computed once. Otherwise half of the memory holds
    a block of rows while the other images pass by in blocks, so features are computed about n / (images that fit)
    times.

    Args:
        metric: A metric with one context and non-negative weights.
        images: Images (n, 3, H, W), RGB float in [0, 1] or uint8, on any device.
        memory_bytes: Approximate memory limit, in addition to the images and the result.

    Returns:
        Distances (n, n) float32 on the metric's device: symmetric, with zeros on the diagonal.

    Raises:
        ConfigError: The metric has several contexts or negative weights.
    """
    _require_one_context(metric)
    n = len(images)
    first = vectors(metric, images[:1])
    row_bytes = first.numel() * first.element_size()
    batch = max(1, min(BATCH, memory_bytes // (2 * OVERHEAD * row_bytes)))
    fitting = max(2, (memory_bytes - batch * OVERHEAD * row_bytes) // row_bytes)
    block = n if n <= fitting else fitting // 2
    result = first.new_zeros(n, n)
    centre: Tensor | None = None
    for top in range(0, n, block):
        rows = _block(metric, images[top : top + block], batch)
        if centre is None:
            centre = rows.mean(dim=0)
        rows -= centre
        own = _squared_distances(rows, rows, memory_bytes).triu_(1)
        result[top : top + block, top : top + block] = own + own.T
        for left in range(top + block, n, block):
            columns = _block(metric, images[left : left + block], batch)
            columns -= centre
            across = _squared_distances(rows, columns, memory_bytes)
            result[top : top + block, left : left + block] = across
            result[left : left + block, top : top + block] = across.T
    return result


def vectors(metric: PerceptualMetric, images: Tensor) -> Tensor:
    """Return vectors (n, F) of images (n, 3, H, W), float or uint8: squared Euclidean distances are the metric's."""
    own = metric.backbone.mean
    parts = normalized_vectors(metric.backbone(to_unit_range(images, own.device, own.dtype)), metric.comparison)
    weights = metric.weights[0].float().split(list(metric.channels))
    scaled = [
        part.mul_((weight / part.shape[1]).sqrt()).flatten(1) for part, weight in zip(parts, weights, strict=True)
    ]
    return torch.cat(scaled, dim=1)


def _block(metric: PerceptualMetric, images: Tensor, batch: int) -> Tensor:
    """Return the vectors of images in one tensor, computed `batch` images at a time."""
    rows: Tensor | None = None
    for start in range(0, len(images), batch):
        part = vectors(metric, images[start : start + batch])
        if rows is None:
            rows = part.new_empty(len(images), part.shape[1])
        rows[start : start + len(part)] = part
    assert rows is not None
    return rows


def _squared_distances(a: Tensor, b: Tensor, memory_bytes: int) -> Tensor:
    """Return |a_i - b_j|^2 of vectors (n, F) and (m, F): (n, m)."""
    # Products of pieces are accurate enough in float32; their sum is not. MPS does not support float64.
    exact = torch.float32 if a.device.type == "mps" else torch.float64
    total = a.new_zeros(len(a), len(b), dtype=exact)
    result = torch.zeros_like(total)
    for piece_a, piece_b in zip(a.split(PIECE, dim=1), b.split(PIECE, dim=1), strict=True):
        lengths_a, lengths_b = (piece.square().sum(dim=1, dtype=exact) for piece in (piece_a, piece_b))
        total += lengths_a[:, None] + lengths_b[None]
        result -= piece_a @ piece_b.T
    result = result.mul_(2).add_(total)
    near_a, near_b = (result <= NEAR * total).nonzero(as_tuple=True)
    if a is b:  # each pair once, without the diagonal
        above = near_a < near_b
        near_a, near_b = near_a[above], near_b[above]
    at_a_time = max(1, memory_bytes // (OVERHEAD * a.shape[1] * a.element_size()))
    for i, j in zip(near_a.split(at_a_time), near_b.split(at_a_time), strict=True):
        result[i, j] = (a[i] - b[j]).square_().sum(dim=1, dtype=exact)
    return result.float()


def mebibytes(count: float) -> int:
    """Return `count` MiB in bytes. Raises `ConfigError` unless it is above 0."""
    if not (math.isfinite(count) and count > 0):
        raise ConfigError(f"memory_MiB must be above 0, not {count}.")
    return math.ceil(count * 2**20)
