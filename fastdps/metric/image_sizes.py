"""The smallest images that a backbone takes. Its layers are run on images without data, so no weights are needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fastdps.errors import ConfigError
from fastdps.metric.backbones import preset_layers

#: Side in pixels that is large enough for every backbone.
_LARGE_ENOUGH = 512


def check_image_size(name: str, taps: Sequence[int] | None, size: tuple[int, int], what: object) -> None:
    """Check that a backbone and its taps exist, and that images are not too small for it.

    Args:
        name: torchvision's name of the model.
        taps: Indices of the tapped layers; None for the preset.
        size: (height, width) in pixels of the images.
        what: The images, for the message, such as the location of their set.

    Raises:
        ConfigError: The model or a tap is unknown, or the images are too small.

    Example:
        >>> check_image_size("alexnet", None, (64, 64), "shards/sample/train")
    """
    layers = preset_layers(name, taps)
    if _fits(layers, *size) or not _fits(layers, _LARGE_ENOUGH, _LARGE_ENOUGH):
        return  # layers that do not run one after another at any size are reported by `Backbone`
    smallest = _smallest_side(layers)
    raise ConfigError(
        f"{what}: images of {size[0]} x {size[1]} pixels are too small for {name}, which needs at least {smallest} x "
        f"{smallest}. Give --size {smallest} or more, pack the images larger, or choose another backbone."
    )


def smallest_side(name: str, taps: Sequence[int] | None) -> int:
    """Return the side in pixels of the smallest square image that a backbone takes.

    Args:
        name: torchvision's name of the model.
        taps: Indices of the tapped layers; None for the preset.

    Raises:
        ConfigError: The model or a tap is unknown.

    Example:
        >>> smallest_side("alexnet", None)
        31
    """
    return _smallest_side(preset_layers(name, taps))


def _smallest_side(layers: Sequence[nn.Module]) -> int:
    low, high = 0, _LARGE_ENOUGH  # too small, large enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(layers, middle, middle) else (middle, high)
    return high


@torch.no_grad()
def _fits(layers: Sequence[nn.Module], height: int, width: int) -> bool:
    x = torch.empty(1, 3, height, width, device="meta")
    try:
        for layer in layers:
            x = layer(x)
    except Exception:  # layers made for other inputs raise various errors
        return False
    return True
