"""Backbones of torchvision, as a sequence of layers.

A backbone is the sequence of a torchvision model's layers: the layers of its `features` if that is a Sequential, its
children otherwise. A tap is the index of a layer whose output is used. Models without a row in `BACKBONES` can be used
with taps given by the user, if their layers run one after another.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from fastdps.errors import ConfigError
from fastdps.metric.backbones import (
    BACKBONES,
    COUNTER,
    Backbone,
    BackboneSpec,
    StartingWeights,
    checked_taps,
    split_taps,
)
from fastdps.metric.weights import load_pretrained

#: Image sizes in pixels that all models of the table accept. Two, to find which axes depend on the size.
_PROBES = (224, 256)
#: Positions of a map up to which a CPU convolves faster with the channels first: 1.25 times at 3 x 3.
_SMALL_MAP = 9


def backbone_spec(name: str) -> BackboneSpec:
    """Return the row of a backbone, or a row without taps for another image classifier of torchvision.

    Raises:
        ConfigError: torchvision has no such model. The message suggests the nearest names.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    known = models.list_models(module=models)
    if name not in known:
        near = get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            f"Unknown backbone {name!r}.{hint} With preset taps: {', '.join(BACKBONES)}. With taps given by you: any "
            "image classifier of torchvision whose layers run one after another. timm/NAME is a model of timm. A model "
            "of your own must first be registered with fastdps.register_backbone."
        )
    try:
        preset = models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    except KeyError:
        return BackboneSpec(())
    return BackboneSpec((), mean=tuple(preset.mean), std=tuple(preset.std))


class TorchvisionBackbone(Backbone):
    """A model of torchvision; see `Backbone`. Its tensors have torchvision's names."""

    def _build(self, name: str, taps: Sequence[int] | None, start: StartingWeights) -> None:
        name, taps = split_taps(name, taps)
        spec = backbone_spec(name)
        self.name = name
        self.library = f"torchvision {torchvision.__version__}"
        network = _meta_network(name, spec)
        self._in_features = isinstance(getattr(network, "features", None), nn.Sequential)
        layers = _layers_of(network)
        self.taps = _check_taps(name, spec.taps if taps is None else taps, layers)
        layers = dict(list(layers.items())[: self.taps[-1] + 1])
        if self._in_features:
            self.features = nn.Sequential(OrderedDict(layers))
        else:
            for layer, module in layers.items():
                self.add_module(layer, module)
        self._keep_outputs()
        for index, (before, module) in enumerate(itertools.pairwise(layers.values())):
            if isinstance(before, nn.Conv2d) and isinstance(module, nn.ReLU) and index not in self.taps:
                module.inplace = True  # nothing else reads the output of the convolution
        self.train(self.training)
        self.channels = self._probe_channels()
        self._set_normalisation(spec.mean, spec.std)

        keys = [key for key in self.state_dict() if not key.endswith(COUNTER)]
        if start.state is not None:
            self._load(start.state, "the given state")
        elif start.pretrained:
            self._load(load_pretrained(name, keys), f"the weights found for {name}")
        else:
            self._load(_seeded_network(name, spec, start.seed).state_dict(), "torchvision's model")
            self._measure_statistics(start.seed)
        # Convolutions are fastest with channels last, on CPUs and on tensor cores.
        self.to(memory_format=torch.channels_last)

    @classmethod
    def probe(cls, name: str, taps: Sequence[int] | None) -> Callable[[int, int], object]:
        """Return a function that runs the layers on an image without data; see `Backbone.probe`."""
        name, taps = split_taps(name, taps)
        spec = backbone_spec(name)
        layers = _layers_of(_meta_network(name, spec))
        last = _check_taps(name, spec.taps if taps is None else taps, layers)[-1]
        used = nn.Sequential(*list(layers.values())[: last + 1]).eval()
        return lambda height, width: used(torch.empty(1, 3, height, width, device="meta"))

    @property
    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The layers up to the last tap, by torchvision's names."""
        return (self.features if self._in_features else self).named_children()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps (n, C_l, H_l, W_l) of images (n, 3, H, W) in [0, 1], the shallowest tap first."""
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return self._tapped(x, _run)

    def portable(self, images: Tensor) -> list[Tensor]:
        """Return what `forward` returns, by operations that every export format supports."""
        return self._tapped((images - self.mean) / self.std, lambda layer, x: layer(x))

    def _tapped(self, x: Tensor, run: Callable[[nn.Module, Tensor], Any]) -> list[Tensor]:
        outputs = []
        for index, (_, module) in enumerate(self.layers):
            x = run(module, x)
            if index in self.taps:
                outputs.append(x)
        return outputs

    @torch.no_grad()
    def _probe_channels(self) -> tuple[int, ...]:
        """Return the channels of each tap by running the layers on images without data."""
        small, large = (torch.empty(1, 3, size, size, device="meta") for size in _PROBES)
        channels = []
        for index, (layer, module) in enumerate(self.layers):
            try:
                small, large = module(small), module(large)
            except Exception as error:  # layers made for other inputs raise various errors
                raise ConfigError(
                    f"The layers of {self.name} cannot be run one after another: {index} {layer} "
                    f"({type(module).__name__}) does not accept the output of the layers before it ({error}). "
                    f"Choose taps below {index}, or another backbone."
                ) from error
            maps = all(isinstance(x, Tensor) and x.dim() == 4 for x in (small, large))
            if index in self.taps:
                if not maps or small.shape[1] != large.shape[1]:
                    raise ConfigError(
                        f"Tap {index} of {self.name}, {layer} ({type(module).__name__}), does not return feature maps "
                        "(n, channels, height, width). Choose other taps, or another backbone."
                    )
                channels.append(small.shape[1])
        return tuple(channels)


def _run(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer to maps (n, C, H, W) in the fastest memory layout."""
    is_small = x.device.type == "cpu" and x.shape[2] * x.shape[3] <= _SMALL_MAP
    if is_small and isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
        convolve: Any = F.conv2d  # the types of torch know one of its two kinds of padding at a time
        weight = layer.weight.contiguous()
        return convolve(x.contiguous(), weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    return layer(x)


def _layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a torchvision model, by its names."""
    features = getattr(network, "features", None)
    return dict((features if isinstance(features, nn.Sequential) else network).named_children())


def _meta_network(name: str, spec: BackboneSpec) -> nn.Module:
    """Return the torchvision model on the meta device: it costs no time and draws no random numbers."""
    try:
        with torch.device("meta"):
            return models.get_model(name, weights=None, **spec.options)
    except NotImplementedError:  # RegNets compute with tensors in their constructor
        return _seeded_network(name, spec, seed=0).to("meta")


def _seeded_network(name: str, spec: BackboneSpec, seed: int) -> nn.Module:
    """Return the torchvision model with its random initialisation."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return models.get_model(name, weights=None, **spec.options)


def _check_taps(name: str, taps: Sequence[int], layers: Mapping[str, nn.Module]) -> tuple[int, ...]:
    """Return the taps in ascending order. Raises `ConfigError` with the list of layers for wrong or repeated taps."""
    known = [
        f"{index} {layer} ({type(module).__name__})" if layer != str(index) else f"{index} ({type(module).__name__})"
        for index, (layer, module) in enumerate(layers.items())
    ]
    return checked_taps(name, taps, known, has_preset=name in BACKBONES)
