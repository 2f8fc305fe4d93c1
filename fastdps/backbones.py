"""Backbones: the ImageNet networks whose features are compared, as rows of a table, and one tap class for all.

Inputs are RGB in [0, 1]; the backbone normalises them with ImageNet's mean and standard deviation (which is LPIPS's
scaling layer, to three digits).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from fastdps.errors import ConfigError
from fastdps.weights import load_pretrained

#: ImageNet statistics in [0, 1], as torchvision's weights were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneSpec:
    """One row: the torchvision constructor, and the indices of the sub-modules of `features` that are tapped."""

    constructor: str
    taps: tuple[int, ...]


#: The taps of LPIPS.
BACKBONES: dict[str, BackboneSpec] = {
    "alexnet": BackboneSpec("alexnet", (1, 4, 7, 9, 11)),
    "vgg16": BackboneSpec("vgg16", (3, 8, 15, 22, 29)),
}


def backbone_spec(name: str) -> BackboneSpec:
    """The row of a backbone; `ConfigError` that lists the known ones if there is none."""
    try:
        return BACKBONES[name]
    except KeyError:
        raise ConfigError(f"Unknown backbone {name!r}. Known: {', '.join(BACKBONES)}.") from None


class Backbone(nn.Module):
    """A network cut off behind its last tap; maps images to the outputs of its taps.

    Input (n, 3, H, W) RGB in [0, 1]; output a list with one (n, C_l, H_l, W_l) per tap. `channels` holds the C_l.
    Built with random weights unless `pretrained`, which raises what `fastdps.weights.load_pretrained` raises.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, *, pretrained: bool = True) -> None:
        super().__init__()
        spec = backbone_spec(name)
        self.name = name
        self.taps = frozenset(spec.taps)
        features = getattr(torchvision.models, spec.constructor)(weights=None).features
        self.features = nn.Sequential(*features[: max(spec.taps) + 1])
        for module in self.features.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # the next layer must not write into what a tap has returned
        if pretrained:
            self.load_state_dict(load_pretrained(name, list(self.state_dict())))
        self.channels = self._count_channels()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        # Channels last is what the convolutions are fastest with, on CPU and on tensor cores.
        self.to(memory_format=torch.channels_last)

    def _count_channels(self) -> tuple[int, ...]:
        """Channels of each tap: those of the last layer before it that has any."""
        channels, current = [], 3
        for index, module in enumerate(self.features):
            current = getattr(module, "out_channels", current)
            if index in self.taps:
                channels.append(current)
        return tuple(channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (n, 3, H, W) in [0, 1] to one feature map per tap, the shallowest first."""
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        outputs = []
        for index, module in enumerate(self.features):
            x = module(x)
            if index in self.taps:
                outputs.append(x)
        return outputs
