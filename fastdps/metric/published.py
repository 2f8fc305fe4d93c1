"""Metrics that have a name: an unadapted backbone, or LPIPS with its published heads."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from fastdps.errors import FastDPSError
from fastdps.metric.backbones import BACKBONES, Backbone, is_backbone
from fastdps.metric.lpips_format import heads_from_lpips
from fastdps.metric.perceptual import PerceptualMetric

#: LPIPS, version 0.1, by its names here: the backbone, and the file of its heads in the `lpips` package.
LPIPS: Mapping[str, tuple[str, str]] = {
    "lpips": ("alexnet", "alex.pth"),
    "lpips/alex": ("alexnet", "alex.pth"),
    "lpips/vgg": ("vgg16", "vgg.pth"),
    "lpips/squeeze": ("squeezenet1_1", "squeeze.pth"),
}


def is_published(name: str) -> bool:
    """Return True if a metric has this name. A directory of the same name is `./NAME`.

    Example:
        >>> is_published("alexnet"), is_published("lpips/vgg"), is_published("runs/mine")
        (True, True, False)
    """
    return name in LPIPS or name in BACKBONES or (is_backbone(name) and not Path(name).exists())


def load_published(name: str) -> PerceptualMetric:
    """Return the metric of a name, on the CPU.

    Args:
        name: A backbone, whose channel weights are equal then, or one of `LPIPS`.

    Returns:
        The metric, with one context.

    Raises:
        FastDPSError: The `lpips` package, which has the heads, is not installed.
        WeightsNotFoundError: There are no pretrained weights of the backbone.

    Example:
        >>> load_published("alexnet").weights.shape
        torch.Size([1, 1152])
    """
    if name not in LPIPS:
        return PerceptualMetric(Backbone(name))
    backbone, file = LPIPS[name]
    found = find_spec("lpips")
    for root in (found and found.submodule_search_locations) or ():
        heads = heads_from_lpips(Path(root, "weights", "v0.1", file))  # read without importing the package
        return PerceptualMetric(Backbone(backbone), heads)
    raise FastDPSError(
        f"{name} needs the package lpips, which has the published heads: pip install lpips==0.1.4. Or use {backbone}, "
        "the unadapted backbone."
    )
