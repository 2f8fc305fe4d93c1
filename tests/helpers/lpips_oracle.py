"""The `lpips` package as an oracle: its network with its v0.1 heads, without a download."""

from __future__ import annotations

import warnings

import lpips
import torch


def lpips_oracle(net: str, weights: dict[str, torch.Tensor], **options: str) -> lpips.LPIPS:
    """Return `lpips.LPIPS(net, **options)` with convolution weights, given by torchvision's names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision and torch.load in deprecated ways
        oracle = lpips.LPIPS(net=net, pnet_rand=True, verbose=False, **options)
    by_index = {key.split(".", 1)[1]: key for key in oracle.net.state_dict()}
    oracle.net.load_state_dict({by_index[key.removeprefix("features.")]: value for key, value in weights.items()})
    return oracle
