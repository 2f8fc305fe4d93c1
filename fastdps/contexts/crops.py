"""Random crops and flips: draw a plan by counter, then apply it to a batch on its device.

    ids ---------- draw_crops --> CropPlan (n,) each        a pure function of (seed, epoch, sample id)
    images, plan - crop -------> (n, 3, size, size)         batched, no loop over images

A crop is square. It is resized by a triangle filter that is as wide as an output pixel (anti-aliased bilinear), as
Pillow's `resize(box=...)` does, by one matrix per axis and image. Kornia's crops sample without a filter: at a crop of
256 pixels for 64 they would skip most pixels.

Shapes: n images, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastdps.contexts.philox import uniforms

#: Least side of a crop, as a share of the shorter side of the image.
LEAST_SIDE = 0.55
#: Number of the random stream that draws crops; lower ones draw distortions, higher ones pairs.
CROP_STREAM = 1 << 14


@dataclass(frozen=True)
class CropPlan:
    """The crop of each image of a batch.

    Attributes:
        side: Side of the crop as a share of the shorter side of the image, float32 (n,).
        top: Position of the crop from top to bottom of what is left, in [0, 1], (n,).
        left: The same from left to right.
        flip: True where the crop is mirrored, bool (n,).
    """

    side: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor

    def to(self, device: torch.device | str) -> CropPlan:
        """Return the plan on another device."""
        parts = (part.to(device, non_blocking=True) for part in (self.side, self.top, self.left, self.flip))
        return CropPlan(*parts)


def draw_crops(ids: Tensor, *, seed: int, epoch: int) -> CropPlan:
    """Draw the crops of a batch of samples: side uniform in [0.55, 1], position uniform, mirrored in half of the cases.

    The crop of a sample depends only on (seed, epoch, sample id).

    Args:
        ids: Sample ids, int64 (n,).
        seed: The seed.
        epoch: The epoch.

    Returns:
        The plan, on the device of `ids`.

    Raises:
        ValueError: `ids` is not a vector of int64.

    Example:
        >>> draw_crops(torch.arange(8), seed=0, epoch=0).side.shape
        torch.Size([8])
    """
    drawn = uniforms(seed, epoch, ids, streams=1, first_stream=CROP_STREAM)[:, 0]
    side = LEAST_SIDE + (1 - LEAST_SIDE) * drawn[:, 0]
    return CropPlan(side.float(), drawn[:, 1].float(), drawn[:, 2].float(), drawn[:, 3] < 0.5)


def crop(images: Tensor, plan: CropPlan, size: int) -> Tensor:
    """Apply the crops of a plan to a batch.

    Args:
        images: (n, 3, H, W) float RGB in [0, 1].
        plan: The plan for these n images.
        size: Side of the result in pixels.

    Returns:
        The crops (n, 3, size, size).

    Raises:
        ValueError: The images have another shape or type, or the plan is for another number of images.

    Example:
        >>> images = torch.rand(8, 3, 96, 96)
        >>> crop(images, draw_crops(torch.arange(8), seed=0, epoch=0), 64).shape
        torch.Size([8, 3, 64, 64])
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise ValueError(f"images must be (n, 3, H, W) float, not {images.dtype} of shape {tuple(images.shape)}")
    if len(plan.side) != len(images):
        raise ValueError(f"the plan is for {len(plan.side)} images, not for {len(images)}")
    height, width = images.shape[-2:]
    side = plan.side.to(images.dtype) * min(height, width)
    rows = _resampling(plan.top * (height - side), side, height, size)
    columns = _resampling(plan.left * (width - side), side, width, size)
    columns = torch.where(plan.flip[:, None, None], columns.flip(1), columns)
    return torch.matmul(rows[:, None], torch.matmul(images, columns[:, None].mT))


def _resampling(start: Tensor, length: Tensor, size: int, out: int) -> Tensor:
    """Return the matrices (n, out, size) that resize the part of a line of `size` pixels from `start` (n,) on."""
    step = length / out
    centre = start[:, None] + (torch.arange(out, device=start.device) + 0.5) * step[:, None]
    pixel = torch.arange(size, device=start.device) + 0.5
    support = step.clamp_min(1)[:, None, None]
    weights = (1 - (pixel - centre[..., None]).abs() / support).clamp_min(0)
    return weights / weights.sum(dim=-1, keepdim=True)
