"""The frozen part of the way of the data: a batch of images and a plan to the moments that heads are trained on.

    uint8 (n, H, W, 3) --> float views (n, 1 + D, 3, H, W) --> features --> Moments (n, D, C)

Nothing here depends on the context, so one pass serves all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdps.distances import Moments
from fastdps.distortions import Interpolation, Plan, apply_plan
from fastdps.metric import PerceptualMetric


def to_float(images: Tensor) -> Tensor:
    """uint8 (n, H, W, 3) to float (n, 3, H, W) in [0, 1]; bytes are moved to the device, floats are made there."""
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def make_views(images: Tensor, plan: Plan, interpolation: Interpolation = "nearest") -> Tensor:
    """Reference and distorted versions: float (n, 3, H, W) to (n, 1 + D, 3, H, W), the reference first."""
    return torch.cat([images[:, None], apply_plan(images, plan, interpolation=interpolation)], dim=1)


def extract_moments(
    metric: PerceptualMetric, images: Tensor, plan: Plan, *, interpolation: Interpolation = "nearest"
) -> Moments:
    """Moments of a batch of uint8 images (n, H, W, 3) under a plan, without gradients, on the device of the images.

    On a GPU the backbone runs in bfloat16; distances are float32 everywhere.
    """
    with torch.inference_mode():
        views = make_views(to_float(images), plan.to(images.device), interpolation)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
            moments = metric.moments(views)
    # Copies made outside inference mode may take part in autograd.
    return Moments(moments.mean.clone(), moments.var.clone())
