"""Adapters: how models of other libraries serve as backbones, those of timm and those that users register.

register_backbone("mine", BackboneAdapter(...)) --> Backbone("mine"), fastdps.load("mine"), TrainConfig.backbone
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchvision import models

from fastdps.errors import ConfigError

Triple = tuple[float, float, float]

#: ImageNet statistics in [0, 1], which most of torchvision's weights were trained with. LPIPS's scaling layer is equal
#: to three digits.
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)

#: Separates the parts of a name: backbones side by side, and taps.
BESIDE, AT = "+", "@"
TIMM = "timm/"


@dataclass(frozen=True)
class BackboneAdapter:
    """How a model of another library serves as a backbone; see `register_backbone`.

    Attributes:
        build: Returns the model with its random initialisation.
        features: Called with the model, normalised images (n, 3, H, W) and the taps in ascending order. Returns a map
            (n, C, H, W) for each tap; tokens of a transformer as a grid, without class and register tokens.
        taps: The taps that are used by default.
        weights: Returns the pretrained state dict of the model, None if there is none.
        tap_count: Number of taps, to check names by; None if that is not known.
        mean: Mean of the input normalisation, per channel.
        std: Standard deviation of the input normalisation.
        multiple: Sides of images are scaled up to a multiple of this, such as the side of a patch.
        size: (height, width) in pixels to which images are scaled, for a model with a fixed input; None for any size.
        truncate: Removes the layers that the taps do not need, whose parameters would be trained for nothing.
        library: Name and version of the library, recorded in metric files.
    """

    build: Callable[[], nn.Module]
    features: Callable[[Any, Tensor, tuple[int, ...]], Sequence[Tensor]]
    taps: tuple[int, ...]
    weights: Callable[[], Mapping[str, Tensor]] | None = None
    tap_count: int | None = None
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    multiple: int = 1
    size: tuple[int, int] | None = None
    truncate: Callable[[Any, tuple[int, ...]], object] | None = None
    library: str = ""


_registered: dict[str, BackboneAdapter] = {}


def register_backbone(name: str, adapter: BackboneAdapter) -> None:
    """Make a model of another library known as a backbone, for this process.

    Everything that takes the name of a backbone then takes this one: `fastdps.load`, `train`, `adapt`. A metric file
    names it, so that another process must register it before it loads the file.

    Args:
        name: Its name; it must not be that of a model of torchvision, nor contain "+", "@" or a space.
        adapter: The model.

    Returns:
        Nothing.

    Raises:
        ConfigError: The name is taken by a model of torchvision or timm, or is not allowed.

    Example:
        >>> import torch, fastdps
        >>> fastdps.register_backbone("mine", fastdps.BackboneAdapter(
        ...     build=lambda: torch.nn.Conv2d(3, 8, 3), features=lambda model, x, taps: [model(x)], taps=(0,)))
        >>> fastdps.PerceptualMetric(fastdps.Backbone("mine", pretrained=False)).channels
        (8,)
    """
    if not name or name.startswith(TIMM) or set(name) & {*BESIDE, *AT, " "} or name in models.list_models():
        raise ConfigError(
            f"A backbone cannot be registered as {name!r}: choose a name that no model of torchvision has, without + @ "
            "and space."
        )
    _registered[name] = adapter


def adapter_of(name: str) -> BackboneAdapter | None:
    """Return the adapter of a name that is registered or a model of timm, None for other names.

    Raises:
        ConfigError: timm has no such model.
        FastDPSError: timm is not installed.
    """
    if name.startswith(TIMM):
        from fastdps.metric.timm_backbones import timm_adapter

        return timm_adapter(name.removeprefix(TIMM))
    return _registered.get(name)


def is_adapted(name: str) -> bool:
    """Return True for the name of a registered backbone and for one that starts as those of timm do."""
    return name.startswith(TIMM) or name in _registered
