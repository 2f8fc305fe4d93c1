"""The metric as a plain module: only operations that every format supports, independent of the image size."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fastdps.metric.distances import unit_normalize
from fastdps.metric.perceptual import PerceptualMetric

#: Transform of feature maps (n, C, H, W) by kind of comparison: vectors along axis 1 at P positions, (n, C, P).
_VECTORS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "spatial": lambda maps: maps.flatten(2),
    "mean": lambda maps: maps.mean(dim=(2, 3))[:, :, None],
    "sort": lambda maps: maps.flatten(2).sort(dim=2).values,
}


class PlainMetric(nn.Module):
    """The first context of a metric.

    It computes the distances of `PerceptualMetric`, without the optimisations for CPUs, which branch on sizes.

    Args:
        metric: The metric; its weights are copied.
    """

    def __init__(self, metric: PerceptualMetric) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(metric.backbone).cpu().to(memory_format=torch.contiguous_format)
        self.kinds = metric.comparison.split("+")
        weights = metric.weights[0].detach().cpu().float().split(list(metric.channels))
        for number, weight in enumerate(weights):
            self.register_buffer(f"weight{number}", weight[:, None].clone())
        self.eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances (n,) of image pairs x and y (n, 3, H, W), RGB float in [0, 1]."""
        features_x, features_y = self.backbone.portable(x), self.backbone.portable(y)
        parts: list[Tensor] = []
        for kind in self.kinds:
            for in_x, in_y in zip(features_x, features_y, strict=True):
                unit_x, unit_y = (unit_normalize(_VECTORS[kind](maps)) for maps in (in_x, in_y))
                weight = self.get_buffer(f"weight{len(parts)}")
                parts.append(((unit_x - unit_y).square() * weight).sum(dim=1).mean(dim=1))
        return torch.stack(parts).sum(dim=0)
