"""Models of timm as backbones: `timm/NAME`. The only file that imports timm.

A tap is a stage of a CNN or hierarchical transformer, by default each of them, or a block of a plain vision
transformer, by default four at even distances, the last included. The tokens of a block are normalised by the final
LayerNorm of the model, as DINOv2's own intermediate features are: without it a few channels of very large values
outweigh all others.

A plain vision transformer interpolates its positions to the size of the images, whose sides are scaled up to a multiple
of its patch. Images for other models with a fixed input, such as Swin's windows, are scaled to it.

Models with TensorFlow's padding, which depends on the parity of the size, get images with sides that are a multiple of
their total stride. The padding is then the same for all sizes, as an exported program with dynamic sizes needs.
"""

from __future__ import annotations

import functools
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdps.errors import ConfigError, FastDPSError, WeightsMismatchError
from fastdps.metric.adapters import TIMM, BackboneAdapter
from fastdps.metric.hub import pretrained_file
from fastdps.metric.weight_sources import State, UnavailableError

#: Blocks of a plain vision transformer that are tapped by default.
DEFAULT_BLOCKS = 4


@functools.cache
def timm_adapter(name: str) -> BackboneAdapter:
    """Return the adapter of a model.

    Args:
        name: timm's name, with or without the tag of its weights, such as "vit_small_patch14_dinov2.lvd142m".

    Returns:
        The adapter.

    Raises:
        ConfigError: timm has no such model, or one that does not give feature maps.
        FastDPSError: timm is not installed.

    Example:
        >>> timm_adapter("resnet18").taps
        (0, 1, 2, 3, 4)
    """
    timm = _timm()
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(TIMM + one for one in near)}?" if near else ""
        raise ConfigError(f"timm {timm.__version__} has no model {name!r}.{hint}")
    with torch.device("meta"):
        model = timm.create_model(name)
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"{TIMM}{name} ({type(model).__name__}) does not give feature maps. Choose another model.")
    config, stages = model.pretrained_cfg, len(model.feature_info)
    is_plain = len({info["reduction"] for info in model.feature_info}) == 1 and stages > 1
    options = _any_size(timm, name) if is_plain else {}
    resizable = bool(options) or not config.get("fixed_input_size", False)
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    if any(isinstance(module, timm.layers.Conv2dSame) for module in model.modules()):
        patch = max(info["reduction"] for info in model.feature_info)
    return BackboneAdapter(
        build=functools.partial(timm.create_model, name, **options),
        features=functools.partial(_features, norm=is_plain),
        taps=_blocks(stages) if is_plain else tuple(range(stages)),
        tap_count=stages,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        multiple=max(patch) if isinstance(patch, tuple) else int(patch),
        size=None if resizable else tuple(config["input_size"][1:]),
        truncate=functools.partial(_truncate, norm=is_plain),
        library=f"timm {timm.__version__}",
    )


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise FastDPSError(f"a backbone {TIMM}NAME needs timm: pip install 'fastdps[timm]'.") from error
    return timm


def _any_size(timm: ModuleType, name: str) -> dict[str, bool]:
    """Return the option with which a vision transformer interpolates its positions; none if it does not have it."""
    option = {"dynamic_img_size": True}
    try:
        with torch.device("meta"):
            timm.create_model(name, **option)
    except TypeError:
        return {}
    return option


def _blocks(count: int) -> tuple[int, ...]:
    """Return the numbers of blocks at even distances, the last of them included."""
    taps = min(DEFAULT_BLOCKS, count)
    return tuple((number + 1) * count // taps - 1 for number in range(taps))


def _features(model: Any, images: Tensor, taps: tuple[int, ...], *, norm: bool) -> list[Tensor]:
    maps: list[Tensor] = model.forward_intermediates(
        images, indices=list(taps), norm=norm, stop_early=True, output_fmt="NCHW", intermediates_only=True
    )
    return maps


def _truncate(model: Any, taps: tuple[int, ...], *, norm: bool) -> None:
    model.prune_intermediate_layers(list(taps), prune_norm=not norm, prune_head=True)
    for module in model.modules():
        if isinstance(module, _timm().layers.Conv2dSame):
            module.__class__ = _EvenlyPadded


class _EvenlyPadded(nn.Conv2d):
    """A convolution with TensorFlow's padding, for inputs with sides that are a multiple of its stride."""

    def forward(self, x: Tensor) -> Tensor:
        sides = zip(self.kernel_size, self.dilation, self.stride, strict=True)
        height, width = (max((kernel - 1) * dilation + 1 - stride, 0) for kernel, dilation, stride in sides)
        padded = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(padded, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


def load_from_hub(name: str, *, download: bool) -> State:
    """Return all tensors of a pretrained model of timm, from the Hugging Face cache or a download into it.

    Args:
        name: timm's name.
        download: Download the file if the cache does not hold it.

    Raises:
        UnavailableError: timm has no weights for the model, or the cache does not hold them.
        WeightsMismatchError: The file in the cache is damaged.
    """
    timm = _timm()
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise UnavailableError(f"timm {timm.__version__} has no weights of {name} there")
    path = pretrained_file(config.hf_hub_id, "model.safetensors", from_cache=not download)
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise WeightsMismatchError(f"{path} does not hold weights of {name}: {error}. Remove it.") from error
    return dict(model.state_dict())


def random_model(name: str) -> nn.Module:
    """Return a model without its pretrained weights, for the conversion of others."""
    model: nn.Module = _timm().create_model(name)
    return model
