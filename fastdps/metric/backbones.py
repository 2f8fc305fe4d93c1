"""Backbones: the ImageNet networks whose features are compared, as rows of a table, and one tap class for all.

A backbone is the sequence of a torchvision model's layers: those of its `features` where it has such a Sequential, its
children otherwise. A tap is the index of a layer whose output is used. Models that are not a row of `BACKBONES` can be
used with taps of one's own, as long as their layers run one after another.

Inputs are RGB in [0, 1]; the backbone normalises them as its weights were trained.
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

#: ImageNet statistics in [0, 1], as most of torchvision's weights were trained with; LPIPS's scaling layer is the same
#: to three digits.
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)

#: Where BatchNorm counts the batches it was trained with; old files lack them, and nothing here reads them.
_COUNTER = "num_batches_tracked"
#: Images that every model of the table is large enough for, in pixels. Two, to see which axes depend on the size.
_PROBES = (224, 256)
#: Images and pixels of the noise that a random network's BatchNorm is measured on.
_NOISE = (4, 3, 128, 128)
#: Positions of a map up to which a CPU convolves it faster with the channels first: 1.25 times at 3 x 3.
_SMALL_MAP = 9


@dataclass(frozen=True)
class BackboneSpec:
    """One row: the indices of the layers that are tapped, the normalisation, options of torchvision's constructor."""

    taps: tuple[int, ...]
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    options: Mapping[str, Any] = field(default_factory=dict)


#: GoogLeNet and Inception v3 are ported from TensorFlow: torchvision's pretrained constructors set `transform_input`,
#: by which the model undoes ImageNet's normalisation and scales [0, 1] to [-1, 1] instead. Their auxiliary classifiers
#: are no layers of the sequence.
_FROM_TENSORFLOW: dict[str, Any] = {
    "mean": HALF,
    "std": HALF,
    "options": {"aux_logits": False, "init_weights": False},
}

#: By torchvision's name. The taps of alexnet, vgg16 and squeezenet1_1 are LPIPS's, the others those of Pihlgren et al.
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
    """The row of a backbone; for any other of torchvision's image classifiers one without taps.

    Raises `ConfigError` that names the nearest ones if there is no such model.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    known = models.list_models(module=models)
    if name not in known:
        near = get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            f"Unknown backbone {name!r}.{hint} With taps of their own: {', '.join(BACKBONES)}; with taps that you "
            "give: any image classifier of torchvision whose layers run one after another."
        )
    try:
        preset = models.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    except KeyError:
        return BackboneSpec(())
    return BackboneSpec((), mean=tuple(preset.mean), std=tuple(preset.std))


class Backbone(nn.Module):
    """A network cut off behind its last tap; maps images to the outputs of its taps.

    Input (n, 3, H, W) RGB in [0, 1]; output a list with one (n, C_l, H_l, W_l) per tap. `channels` holds the C_l and
    `taps` the indices, ascending. State and modules have torchvision's names.

    `taps` replaces those of the table. The weights are ImageNet's, or `state` if it is given, or with
    `pretrained=False` torchvision's initialisation drawn with `seed`; the global generator is left alone.

    All layers compute as in evaluation, also in training mode: BatchNorm keeps its statistics, which belong to
    ImageNet and not to batches of seven versions of an image, and nothing is dropped at random, because the views of an
    image must go through one and the same network to be compared. BatchNorm of a random network has the statistics of
    noise images, without which the features of a deep one would vanish.

    Raises `ConfigError` for an unknown model or tap and for layers that do not run one after another, what
    `fastdps.metric.weights.load_pretrained` raises, and `WeightsMismatchError` for a `state` that does not fit.
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
        features = getattr(network, "features", None)
        self._in_features = isinstance(features, nn.Sequential)
        layers = dict((features if isinstance(features, nn.Sequential) else network).named_children())
        self.taps = _check_taps(name, spec.taps if taps is None else taps, layers)
        layers = dict(list(layers.items())[: self.taps[-1] + 1])
        if self._in_features:
            self.features = nn.Sequential(OrderedDict(layers))
        else:
            for layer, module in layers.items():
                self.add_module(layer, module)
        for module in self.modules():
            if "inplace" in vars(module):
                vars(module)["inplace"] = False  # the next layer must not write into what a tap has returned
        for index, (before, module) in enumerate(itertools.pairwise(layers.values())):
            if isinstance(before, nn.Conv2d) and isinstance(module, nn.ReLU) and index not in self.taps:
                module.inplace = True  # nothing else reads what the convolution has returned
        self.train(self.training)
        self.channels = self._probe_channels()
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

        keys = [key for key in self.state_dict() if not key.endswith(_COUNTER)]
        if state is not None:
            self._load(state, "the given state")
        elif pretrained:
            self._load(load_pretrained(name, keys), f"what was found as {name}'s weights")
        else:
            self._load(_seeded_network(name, spec, seed).state_dict(), "torchvision's model")
            self._measure_statistics(seed)
        # Channels last is what the convolutions are fastest with, on CPU and on tensor cores.
        self.to(memory_format=torch.channels_last)

    @property
    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The layers up to the last tap, by torchvision's names."""
        return (self.features if self._in_features else self).named_children()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the backbone itself; its layers stay in evaluation mode (see the class)."""
        super().train(mode)
        for module in self.children():
            module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (n, 3, H, W) in [0, 1] to one feature map per tap, the shallowest first."""
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        outputs = []
        for index, (_, module) in enumerate(self.layers):
            x = _run(module, x)
            if index in self.taps:
                outputs.append(x)
        return outputs

    @torch.no_grad()
    def _probe_channels(self) -> tuple[int, ...]:
        """Channels of each tap, by running the layers on images without data."""
        small, large = (torch.empty(1, 3, size, size, device="meta") for size in _PROBES)
        channels = []
        for index, (layer, module) in enumerate(self.layers):
            try:
                small, large = module(small), module(large)
            except Exception as error:  # whatever a layer raises that was made for other inputs
                raise ConfigError(
                    f"The layers of {self.name} cannot be run one after another: {index} {layer} "
                    f"({type(module).__name__}) does not take what comes out of those before it ({error}). "
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
        """Take over the tensors of this backbone from a state; those that are not of it are ignored."""
        loaded = {}
        for key, own in self.state_dict().items():
            if key.endswith(_COUNTER):
                loaded[key] = torch.zeros(own.shape, dtype=own.dtype)
            elif key not in state:
                raise WeightsMismatchError(f"{source} lacks the tensor {key} of {self.name}.")
            elif state[key].shape != own.shape:
                shapes = f"{tuple(state[key].shape)} and not {tuple(own.shape)}"
                raise WeightsMismatchError(f"The tensor {key} of {self.name} in {source} is of shape {shapes}.")
            else:
                loaded[key] = state[key].detach().to(own.dtype, copy=True)
        self.load_state_dict(loaded, assign=True)

    @torch.no_grad()
    def _measure_statistics(self, seed: int) -> None:
        """Set the statistics of BatchNorm to those of noise images."""
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
    """What a layer makes of the maps x (n, C, H, W), in the layout that is fastest."""
    if isinstance(layer, nn.Conv2d) and x.device.type == "cpu" and x.shape[2] * x.shape[3] <= _SMALL_MAP:
        return functional_call(layer, {"weight": layer.weight.contiguous()}, x.contiguous())
    return layer(x)


def _meta_network(name: str, spec: BackboneSpec) -> nn.Module:
    """The model of torchvision without data, which takes no time and draws nothing."""
    try:
        with torch.device("meta"):
            return models.get_model(name, weights=None, **spec.options)
    except NotImplementedError:  # RegNets compute with tensors while they are made
        return _seeded_network(name, spec, seed=0).to("meta")


def _seeded_network(name: str, spec: BackboneSpec, seed: int) -> nn.Module:
    """The model of torchvision with its own random initialisation."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return models.get_model(name, weights=None, **spec.options)


def _check_taps(name: str, taps: Sequence[int], layers: Mapping[str, nn.Module]) -> tuple[int, ...]:
    """The taps in ascending order; `ConfigError` that lists those there are, unless they are some of them."""
    wrong = [tap for tap in taps if type(tap) is not int or tap not in range(len(layers))]
    repeated = sorted({tap for tap in taps if taps.count(tap) > 1} - {*wrong})
    if taps and not wrong and not repeated:
        return tuple(sorted(taps))
    if wrong:
        what = f"{name} has no tap {', '.join(map(repr, wrong))}"
    elif repeated:
        what = f"Tap {', '.join(map(str, repeated))} of {name} is given more than once"
    else:
        what = f"Taps must be given for {name}" + ("" if name in BACKBONES else ", which has no preset")
    there = [
        f"{index} {layer} ({type(module).__name__})" if layer != str(index) else f"{index} ({type(module).__name__})"
        for index, (layer, module) in enumerate(layers.items())
    ]
    raise ConfigError(f"{what}. Its taps: {', '.join(there)}.")
