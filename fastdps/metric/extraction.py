"""The frozen part of the way of the data: a batch of images and a plan to the moments that heads are trained on.

    uint8 (n, H, W, 3) --> float views (n, 1 + D, 3, H, W) --> features --> Moments (n, D, C)

Nothing here depends on the context, so one pass serves all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdps.contexts.distortions import Interpolation, Plan, apply_plan
from fastdps.metric.distances import Moments
from fastdps.metric.heads import distances
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.metric.precision import Precision, autocast


def to_float(images: Tensor) -> Tensor:
    """uint8 (n, H, W, 3) to float (n, 3, H, W) in [0, 1]; bytes are moved to the device, floats are made there."""
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def make_views(images: Tensor, plan: Plan, interpolation: Interpolation = "nearest") -> Tensor:
    """Reference and distorted versions: float (n, 3, H, W) to (n, 1 + D, 3, H, W), the reference first."""
    views = images.new_empty(len(images), 1 + len(plan.distortions), *images.shape[1:])
    views[:, 0] = images
    apply_plan(images, plan, interpolation=interpolation, out=views[:, 1:])
    return views


def frozen_moments(metric: PerceptualMetric, views: Tensor, precision: Precision = "auto") -> Moments:
    """Moments of views (n, 1 + D, 3, H, W) without gradients for the backbone; they may take part in autograd.

    The backbone computes in `precision`; distances are float32 everywhere.
    """
    with torch.inference_mode(), autocast(precision, views.device):
        moments = metric.moments(views)
    # Copies made outside inference mode are ordinary tensors.
    return Moments(moments.mean.clone(), moments.var.clone())


def all_distances(baseline: PerceptualMetric, adapted: Sequence[PerceptualMetric], views: Tensor) -> Tensor:
    """Distances of views (n, 1 + D, 3, H, W) in all contexts of all metrics: (n, D, 1 + K), the baseline's one first.

    Where all metrics share one backbone its features are computed once, and the distances are one matrix product.
    """
    mean = frozen_moments(baseline, views).mean
    if all(metric.backbone is baseline.backbone for metric in adapted):
        return distances(torch.cat([baseline.weights[:1], *(metric.weights for metric in adapted)]), mean)
    own = [distances(metric.weights, frozen_moments(metric, views).mean) for metric in adapted]
    return torch.cat([distances(baseline.weights[:1], mean), *own], dim=-1)
