"""Backbones: the networks whose features are compared, opened by name.

    alexnet                       a row of `BACKBONES`, or another torchvision model with taps: `torchvision_backbones`
    timm/NAME                     a model of timm: `timm_backbones`
    NAME                          a model that `register_backbone` made known: `model_backbones`
    alexnet+timm/NAME             two or more side by side: `combined_backbones`

`NAME@1,2,3` names the taps. A tap is the number of a layer, stage or block whose output is used.

Inputs are RGB in [0, 1]; each backbone normalises them as in the training of its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastdps.errors import ConfigError, WeightsMismatchError
from fastdps.metric.adapters import AT, BESIDE, HALF, IMAGENET_MEAN, IMAGENET_STD, Triple, is_adapted

#: BatchNorm's counter of training batches; old files lack it, and nothing here reads it.
COUNTER = "num_batches_tracked"
#: Shape of the noise images on which the BatchNorm statistics of a random network are measured.
_NOISE = (4, 3, 128, 128)


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


def is_backbone(text: str) -> bool:
    """Return True for what can only be the name of a backbone: a preset, a registered one, one of timm, or several."""
    parts = [part.partition(AT)[0] for part in text.split(BESIDE)]
    return all(part in BACKBONES or is_adapted(part) for part in parts)


def split_taps(name: str, taps: Sequence[int] | None) -> tuple[str, Sequence[int] | None]:
    """Return a name without its `@1,2,3`, and the taps that are given by it or in `taps`. Raises `ConfigError`."""
    plain, at, listed = name.partition(AT)
    if not at:
        return plain, taps
    try:
        own = [int(tap) for tap in listed.split(",")]
    except ValueError:
        raise ConfigError(f"{name!r} must end in whole numbers such as {plain}@1,2,3.") from None
    if taps is not None and sorted(taps) != sorted(own):
        raise ConfigError(f"{name} already has taps: leave out {', '.join(map(str, taps))}, or the @ of the name.")
    return plain, own


def check_backbone(name: str, taps: Sequence[int] | None) -> None:
    """Check that a backbone and its taps exist, without its weights.

    Args:
        name: The name of the backbone.
        taps: The taps; None for the preset.

    Raises:
        ConfigError: The model or a tap is unknown.
        FastDPSError: The library of the model is not installed.
    """
    backbone_class(name).probe(name, taps)


def checked_taps(name: str, taps: Sequence[int], known: Sequence[str], *, has_preset: bool = True) -> tuple[int, ...]:
    """Return taps in ascending order.

    Args:
        name: The name of the backbone, for messages.
        taps: The taps.
        known: A description of each possible tap.
        has_preset: The backbone has default taps.

    Raises:
        ConfigError: There are none, or some are repeated or unknown. The message lists the possible taps.
    """
    wrong = [tap for tap in taps if type(tap) is not int or tap not in range(len(known))]
    repeated = sorted({tap for tap in taps if tap not in wrong and taps.count(tap) > 1})
    if taps and not wrong and not repeated:
        return tuple(sorted(taps))
    if wrong:
        what = f"{name} has no tap {', '.join(map(repr, wrong))}"
    elif repeated:
        what = f"Tap {', '.join(map(str, repeated))} of {name} is given more than once"
    else:
        what = f"Taps must be given for {name}" + ("" if has_preset else ", which has no preset")
    raise ConfigError(f"{what}. Its taps: {', '.join(known)}.")


def backbone_class(name: str) -> type[Backbone]:
    """Return the class that opens the name of a backbone."""
    from fastdps.metric.combined_backbones import CombinedBackbone
    from fastdps.metric.model_backbones import ModelBackbone
    from fastdps.metric.torchvision_backbones import TorchvisionBackbone

    if BESIDE in name:
        return CombinedBackbone
    plain = name.partition(AT)[0]
    return ModelBackbone if is_adapted(plain) else TorchvisionBackbone


@dataclass(frozen=True)
class StartingWeights:
    """The weights of a new backbone.

    Attributes:
        pretrained: Look for pretrained weights; otherwise draw random ones.
        seed: Seed of the random ones.
        state: If given, the weights themselves, as a state dict.
    """

    pretrained: bool
    seed: int
    state: Mapping[str, Tensor] | None


class Backbone(nn.Module):
    """A network truncated after its last tap. It maps images to the outputs of its taps.

    `Backbone(name)` returns the class that opens the name, as `pathlib.Path` does.

    All layers compute as in evaluation mode, also in training. BatchNorm keeps its statistics, which describe ImageNet
    and not batches of seven versions of an image. Dropout is off, because the views of an image must pass through the
    same network to be compared. BatchNorm of a random network has the statistics of noise images; without them the
    features of a deep network would vanish.

    Args:
        name: The name of the backbone, see the module.
        taps: Indices of the tapped layers; None for the preset.
        pretrained: Load pretrained weights unless `state` is given; otherwise use the library's initialisation.
        seed: Seed of the initialisation. The global generator is not used.
        state: The weights, with the names of `state_dict`.

    Attributes:
        name: The name, without taps.
        taps: The indices of the taps, ascending.
        channels: The channels C_l of each tap.
        mean: The mean of the input normalisation, (1, 3, 1, 1).
        std: The standard deviation of the input normalisation, (1, 3, 1, 1).
        library: Name and version of the library that the model comes from.

    Raises:
        ConfigError: The model or a tap is unknown, or the layers do not run one after another.
        FastDPSError: The library of the model is not installed.
        WeightsNotFoundError: There are no pretrained weights; see `fastdps.metric.weights.load_pretrained`.
        WeightsMismatchError: Weights do not fit the model, or are not the expected ones.

    Example:
        >>> backbone = Backbone("alexnet", pretrained=False)
        >>> backbone.channels, tuple(backbone(torch.rand(1, 3, 64, 64))[0].shape)
        ((64, 192, 384, 256, 256), (1, 64, 15, 15))
    """

    name: str
    taps: tuple[int, ...]
    channels: tuple[int, ...]
    library: str
    mean: Tensor
    std: Tensor

    def __new__(cls, name: str = "", **_: Any) -> Self:
        """Return an instance of the class that opens the name."""
        kind: type[Any] = backbone_class(name) if cls is Backbone else cls
        made: Self = super().__new__(kind)
        return made

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
        self._build(name, taps, StartingWeights(pretrained, seed, state))

    def _build(self, name: str, taps: Sequence[int] | None, start: StartingWeights) -> None:
        """Create the layers up to the last tap and load their weights: what each kind of backbone does."""
        raise NotImplementedError

    @classmethod
    def probe(cls, name: str, taps: Sequence[int] | None) -> Callable[[int, int], object]:
        """Return a function of (height, width) that runs the layers without weights, and raises if they fail.

        Raises:
            ConfigError: The model or a tap is unknown.
        """
        raise NotImplementedError

    def portable(self, images: Tensor) -> list[Tensor]:
        """Return what `forward` returns, by operations that every export format supports."""
        return self(images)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the backbone; its layers stay in evaluation mode (see the class)."""
        super().train(mode)
        for module in self.children():
            module.eval()
        return self

    def _keep_outputs(self) -> None:
        """Stop the layers from computing in place: none may overwrite the output of a tap."""
        for module in self.modules():
            if "inplace" in vars(module):
                vars(module)["inplace"] = False

    def _set_normalisation(self, mean: Triple, std: Triple) -> None:
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def _load(self, state: Mapping[str, Tensor], source: str) -> None:
        """Copy the tensors of this backbone from a state; other tensors are ignored. `source` is for messages."""
        loaded = {}
        for key, own in self.state_dict().items():
            if key.endswith(COUNTER):
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
