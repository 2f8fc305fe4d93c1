"""Backbones: the ImageNet networks whose features are compared, as rows of a table, and one class for all of them.

A backbone is the sequence of a torchvision model's layers: the layers of its `features` if that is a Sequential, its
children otherwise. A tap is the index of a layer whose output is used. Models without a row in `BACKBONES` can be used
with taps given by the user, if their layers run one after another.

Inputs are RGB in [0, 1]; the backbone normalises them as in the training of its weights.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision import models

from fastdps.errors import ConfigError, WeightsMismatchError
from fastdps.metric.weights import load_pretrained

Triple = tuple[float, float, float]

#: ImageNet statistics in [0, 1], which most of torchvision's weights were trained with. LPIPS's scaling layer is equal
#: to three digits.
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)

#: BatchNorm's counter of training batches; old files lack it, and nothing here reads it.
_COUNTER = "num_batches_tracked"
#: Image sizes in pixels that all models of the table accept. Two, to find which axes depend on the size.
_PROBES = (224, 256)
#: Shape of the noise images on which the BatchNorm statistics of a random network are measured.
_NOISE = (4, 3, 128, 128)
#: Positions of a map up to which a CPU convolves faster with the channels first: 1.25 times at 3 x 3.
_SMALL_MAP = 9


@dataclass(frozen=True)
class BackboneSpec:
    """One row of the table.

    Attributes:
        taps: Indices of the tapped layers.
        mean: Mean of the input normalisation, per channel.
        std: Standard deviation of the input normalisation.
        options: Keyword arguments of torchvision's constructor.
    """

    taps: tuple[int, ...]
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    options: Mapping[str, Any] = field(default_factory=dict)


#: GoogLeNet and Inception v3 are ported from TensorFlow: torchvision's pretrained constructors set `transform_input`,
#: so that the model undoes ImageNet's normalisation and scales [0, 1] to [-1, 1]. Their auxiliary classifiers are not
#: part of the sequence.
_FROM_TENSORFLOW: dict[str, Any] = {
    "mean": HALF,
    "std": HALF,
    "options": {"aux_logits": False, "init_weights": False},
}

#: By torchvision's name. Taps of alexnet, vgg16 and squeezenet1_1 as in LPIPS, the others as in Pihlgren et al.
BACKBONES: Mapping[str, BackboneSpec] = {
    "alexnet": BackboneSpec((1, 4, 7, 9, 11)),
    "vgg11": BackboneSpec((1, 4, 9, 19)),
    "vgg16": BackboneSpec((3, 8, 15, 22, 29)),
    "vgg16_bn": BackboneSpec((5, 12, 22, 42)),
    "vgg19": BackboneSpec((3, 8, 17, 35)),
    "squeezenet1_1": BackboneSpec((1, 4, 7, 9, 10, 11, 12)),
    "densenet121": BackboneSpec((2, 4, 6, 10)),
    "resnet18": BackboneSpec((2, 4, 5, 7)),
    "resnet50": BackboneSpec((2, 4, 5, 7)),
    "resnext50_32x4d": BackboneSpec((2, 4, 5, 7)),
    "googlenet": BackboneSpec((0, 5, 8, 15), **_FROM_TENSORFLOW),
    "inception_v3": BackboneSpec((2, 7, 9, 14), **_FROM_TENSORFLOW),
    "efficientnet_b0": BackboneSpec((0, 1, 4, 7)),
    "efficientnet_b7": BackboneSpec((0, 1, 4, 7)),
}


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
            "image classifier of torchvision whose layers run one after another."
        )
    try:
        preset = models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    except KeyError:
        return BackboneSpec(())
    return BackboneSpec((), mean=tuple(preset.mean), std=tuple(preset.std))


def check_backbone(name: str, taps: Sequence[int] | None) -> None:
    """Check that a backbone and its taps exist, without its weights.

    Args:
        name: torchvision's name of the model.
        taps: Indices of the tapped layers; None for the preset.

    Raises:
        ConfigError: The model or a tap is unknown.
    """
    preset_layers(name, taps)


def preset_layers(name: str, taps: Sequence[int] | None) -> list[nn.Module]:
    """Return the layers of a backbone up to its last tap, on the meta device. Raises what `check_backbone` raises."""
    spec = backbone_spec(name)
    layers = _layers_of(_meta_network(name, spec))
    last = _check_taps(name, spec.taps if taps is None else taps, layers)[-1]
    return [layer.eval() for layer in list(layers.values())[: last + 1]]


class Backbone(nn.Module):
    """A network truncated after its last tap. It maps images to the outputs of its taps.

    All layers compute as in evaluation mode, also in training. BatchNorm keeps its statistics, which describe ImageNet
    and not batches of seven versions of an image. Dropout is off, because the views of an image must pass through the
    same network to be compared. BatchNorm of a random network has the statistics of noise images; without them the
    features of a deep network would vanish.

    Args:
        name: torchvision's name of the model.
        taps: Indices of the tapped layers; None for the preset.
        pretrained: Load ImageNet weights unless `state` is given; otherwise use torchvision's initialisation.
        seed: Seed of the initialisation. The global generator is not used.
        state: The weights, with torchvision's names.

    Attributes:
        taps: The indices of the taps, ascending.
        channels: The channels C_l of each tap.
        mean: The mean of the input normalisation, (1, 3, 1, 1).
        std: The standard deviation of the input normalisation, (1, 3, 1, 1).

    Raises:
        ConfigError: The model or a tap is unknown, or the layers do not run one after another.
        WeightsNotFoundError: There are no pretrained weights; see `fastdps.metric.weights.load_pretrained`.
        WeightsMismatchError: Weights do not fit the model, or are not the expected ones.

    Example:
        >>> backbone = Backbone("alexnet", pretrained=False)
        >>> [tuple(features.shape) for features in backbone(torch.rand(1, 3, 64, 64))]
        [(1, 64, 15, 15), (1, 192, 7, 7), (1, 384, 3, 3), (1, 256, 3, 3), (1, 256, 3, 3)]
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        *,
        taps: Sequence[int] | None = None,
        pretrained: bool = True,
        seed: int = 0,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        spec = backbone_spec(name)
        self.name = name
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
        for module in self.modules():
            if "inplace" in vars(module):
                vars(module)["inplace"] = False  # a layer must not overwrite the output of a tap
        for index, (before, module) in enumerate(itertools.pairwise(layers.values())):
            if isinstance(before, nn.Conv2d) and isinstance(module, nn.ReLU) and index not in self.taps:
                module.inplace = True  # nothing else reads the output of the convolution
        self.train(self.training)
        self.channels = self._probe_channels()
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

        keys = [key for key in self.state_dict() if not key.endswith(_COUNTER)]
        if state is not None:
            self._load(state, "the given state")
        elif pretrained:
            self._load(load_pretrained(name, keys), f"the weights found for {name}")
        else:
            self._load(_seeded_network(name, spec, seed).state_dict(), "torchvision's model")
            self._measure_statistics(seed)
        # Convolutions are fastest with channels last, on CPUs and on tensor cores.
        self.to(memory_format=torch.channels_last)

    @property
    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The layers up to the last tap, by torchvision's names."""
        return (self.features if self._in_features else self).named_children()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the backbone; its layers stay in evaluation mode (see the class)."""
        super().train(mode)
        for module in self.children():
            module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps (n, C_l, H_l, W_l) of images (n, 3, H, W) in [0, 1], the shallowest tap first."""
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        outputs = []
        for index, (_, module) in enumerate(self.layers):
            x = _run(module, x)
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

    def _load(self, state: Mapping[str, Tensor], source: str) -> None:
        """Copy the tensors of this backbone from a state; other tensors are ignored. `source` is for messages."""
        loaded = {}
        for key, own in self.state_dict().items():
            if key.endswith(_COUNTER):
                loaded[key] = torch.zeros(own.shape, dtype=own.dtype)
            elif key not in state:
                raise WeightsMismatchError(f"{source} lacks the tensor {key} of {self.name}. Restore it or replace it.")
            elif state[key].shape != own.shape:
                shapes = f"{tuple(state[key].shape)}, not {tuple(own.shape)}"
                raise WeightsMismatchError(f"The tensor {key} of {self.name} in {source} has shape {shapes}.")
            else:
                loaded[key] = state[key].detach().to(own.dtype, copy=True)
        self.load_state_dict(loaded, assign=True)

    @torch.no_grad()
    def _measure_statistics(self, seed: int) -> None:
        """Measure the BatchNorm statistics on noise images."""
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        self(torch.rand(_NOISE, generator=torch.Generator().manual_seed(seed)))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
            norm.num_batches_tracked = torch.zeros((), dtype=torch.long)


def _run(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer to maps (n, C, H, W) in the fastest memory layout."""
    if isinstance(layer, nn.Conv2d) and x.device.type == "cpu" and x.shape[2] * x.shape[3] <= _SMALL_MAP:
        return functional_call(layer, {"weight": layer.weight.contiguous()}, x.contiguous())
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
    wrong = [tap for tap in taps if type(tap) is not int or tap not in range(len(layers))]
    repeated = sorted({tap for tap in taps if tap not in wrong and taps.count(tap) > 1})
    if taps and not wrong and not repeated:
        return tuple(sorted(taps))
    if wrong:
        what = f"{name} has no tap {', '.join(map(repr, wrong))}"
    elif repeated:
        what = f"Tap {', '.join(map(str, repeated))} of {name} is given more than once"
    else:
        what = f"Taps must be given for {name}" + ("" if name in BACKBONES else ", which has no preset")
    existing = [
        f"{index} {layer} ({type(module).__name__})" if layer != str(index) else f"{index} ({type(module).__name__})"
        for index, (layer, module) in enumerate(layers.items())
    ]
    raise ConfigError(f"{what}. Its taps: {', '.join(existing)}.")
