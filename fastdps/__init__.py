"""fastdps: adapt a perceptual image metric to your notion of similarity, at the speed of the hardware.

    import fastdps
    m = fastdps.load("runs/sample", context="color,darken,zoom_in,rotate,translate,blur")
    m(x, y)                  # distances (N,) of images (N, 3, H, W), float in [0, 1] or uint8
    m.rank(ref, candidates)  # the nearest first
    m.matrix(images)         # all pairs

What is named here is imported when it is first used, so that the command starts fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdps.errors import FastDPSError
    from fastdps.metric.image_metric import ImageMetric, Ranked
    from fastdps.metric.load import load

__all__ = ["FastDPSError", "ImageMetric", "Ranked", "load"]

#: The module of each public name.
_HOME = {
    "FastDPSError": "fastdps.errors",
    "ImageMetric": "fastdps.metric.image_metric",
    "Ranked": "fastdps.metric.image_metric",
    "load": "fastdps.metric.load",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("fastdps")
    if name not in _HOME:
        raise AttributeError(f"module 'fastdps' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "__version__"})
