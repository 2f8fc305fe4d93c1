"""LPIPS with its published heads, by fastdps and by the `lpips` package."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from fastdps.errors import FastDPSError
from fastdps.metric.image_metric import ImageMetric
from fastdps.metric.published import LPIPS, load_published

#: The maximum difference between both distances: without TF32, and with it, as GPUs convolve.
AGREEMENT, AGREEMENT_TF32 = 1e-5, 1e-2


def both_lpips(name: str, device: torch.device) -> tuple[ImageMetric, Any]:
    """Return LPIPS by fastdps, and by the `lpips` package, on the same backbone.

    Args:
        name: One of `fastdps.metric.published.LPIPS`.
        device: Where to compute.
    """
    import lpips

    metric = load_published(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision and torch.load in deprecated ways
        net = LPIPS[name][1].removesuffix(".pth")
        oracle = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).requires_grad_(False)
    keys = {key.split(".", 1)[1]: key for key in oracle.net.state_dict()}
    state = metric.backbone.state_dict()
    oracle.net.load_state_dict({keys[key.removeprefix("features.")]: tensor for key, tensor in state.items()})
    return ImageMetric(metric.to(device)), oracle.to(device)


def check_agreement(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Raise `FastDPSError` unless both distances are equal, so that the timed results are the same."""
    exact = ours.device.type == "cpu" or not torch.backends.cudnn.allow_tf32
    if (difference := (ours - theirs).abs().max().item()) > (AGREEMENT if exact else AGREEMENT_TF32):
        raise FastDPSError(f"{what} and lpips differ by {difference:.1e}: the timed results are not the same.")
