"""Convert channel weights from and to checkpoints of the `lpips` package (0.1.x).

    lin{i}.model.1.weight (1, C_i, 1, 1), one per tap, the shallowest first <--> one row of weights (1, C)

A checkpoint holds the heads only: both packages use the same torchvision backbone. Heads of LPIPS's version 0.1 give
the same distances here and there; heads of version 0.0 were trained on images that were not normalised.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdps.errors import ConfigError, FastDPSError

_KEY = re.compile(r"lin(\d+)\.model\.1\.weight")
#: Keys of the heads of an LPIPS without dropout, and the prefix of the backbone's keys in a checkpoint of a full LPIPS.
_WITHOUT_DROPOUT = re.compile(r"lins?\.?\d+\.model\.0\.weight")
_BACKBONE = "net."


def heads_from_lpips(source: str | Path | Mapping[str, Tensor]) -> Tensor:
    """Return the heads of LPIPS as the channel weights of one context, for `PerceptualMetric(backbone, weights)`.

    Keys `model.0` are rejected. They come from an LPIPS made with `use_dropout=False`, which silently ignores a
    checkpoint with keys `model.1` and keeps random heads, so its heads may be trained or random.

    Args:
        source: A checkpoint such as the package's `weights/v0.1/alex.pth`, or its state dict.

    Returns:
        Weights (1, C) float32.

    Raises:
        FastDPSError: The file cannot be read, or has other keys or shapes, a gap in the numbering, or weights that are
            negative or not finite.

    Example:
        >>> weights = heads_from_lpips("lpips/weights/v0.1/alex.pth")  # doctest: +SKIP
        >>> metric = PerceptualMetric(Backbone("alexnet"), weights)  # doctest: +SKIP
    """
    if isinstance(source, Mapping):
        name, state = "the state dict", source
    else:
        name, state = str(source), _load(Path(source))
    if any(_WITHOUT_DROPOUT.fullmatch(key) for key in state):
        raise FastDPSError(
            f"{name} has keys `model.0` of an LPIPS with use_dropout=False, which keeps random heads when it loads "
            "trained ones. If these heads were trained, rename the keys to `model.1`; if not, create LPIPS with "
            "use_dropout=True, which only matters in training, and save it again."
        )
    if unknown := [key for key in state if not _KEY.fullmatch(key)]:
        has_backbone = any(key.startswith(_BACKBONE) for key in unknown)
        why = " It has a backbone, which may have been trained with the heads." if has_backbone else ""
        raise FastDPSError(
            f"{name} has {', '.join(unknown[:3])}{' and more' if len(unknown) > 3 else ''} besides heads "
            f"`lin{{i}}.model.1.weight`.{why} Pass a state dict with only these keys."
        )
    keys = [_key(tap) for tap in range(max(1, len(state)))]
    if missing := [key for key in keys if key not in state]:
        raise FastDPSError(f"{name} lacks the key {missing[0]}: it has {len(state)} heads. Restore it, or train again.")
    return torch.cat([_head(state[key], f"{key} of {name}") for key in keys])[None]


def heads_to_lpips(weights: Tensor, channels: Sequence[int]) -> dict[str, Tensor]:
    """Return the channel weights of one context as a state dict of LPIPS.

    Save it with `torch.save`; then `lpips.LPIPS(net="alex", model_path=PATH)` computes the distances of that context.
    They agree only for a metric with the comparison `spatial` on a pretrained backbone that LPIPS has (alexnet, vgg16,
    squeezenet1_1). LPIPS does not check keys when it loads; the keys here are the ones it reads.

    Args:
        weights: Channel weights (C,) or (1, C).
        channels: The channels C_i of each tap.

    Raises:
        ConfigError: There is more than one context, the channels do not add up to C, or weights are negative or not
            finite.

    Example:
        >>> torch.save(heads_to_lpips(metric.weights[0], metric.channels), "heads.pth")  # doctest: +SKIP
    """
    row = weights.flatten()
    if weights.shape not in ((len(row),), (1, len(row))):
        raise ConfigError(f"LPIPS has one context, not weights {tuple(weights.shape)}; give one row of them.")
    if len(row) != sum(channels):
        raise ConfigError(f"{len(row)} weights do not fit taps of {', '.join(map(str, channels))} channels.")
    if reason := _fault(row):
        raise ConfigError(f"The weights {reason}, so they are not the weights of a metric. Train again.")
    parts = row.detach().to("cpu", torch.float32).split(list(channels))
    return {_key(tap): part.clone().view(1, -1, 1, 1) for tap, part in enumerate(parts)}


def _key(tap: int) -> str:
    return f"lin{tap}.model.1.weight"


def _load(path: Path) -> Mapping[str, Any]:
    """Return the state dict in a file, read without executing code in its pickle."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FastDPSError(f"{path} does not exist.") from None
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise FastDPSError(f"{path} cannot be read as a checkpoint of torch: {error}. Restore it.") from error
    if not isinstance(state, Mapping):
        raise FastDPSError(f"{path} holds {type(state).__name__}, not a state dict. Save the heads' `state_dict()`.")
    return state


def _head(weight: Any, name: str) -> Tensor:
    """Return the weights (C_i,) float32 of one head; `name` is for error messages."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() != 4:
        raise FastDPSError(f"{name} is not a float tensor (1, C, 1, 1). Restore it.")
    if weight.shape != (1, weight.shape[1], 1, 1):
        raise FastDPSError(f"{name} has shape {tuple(weight.shape)}, not (1, C, 1, 1): it is not a head of LPIPS.")
    if reason := _fault(weight):
        raise FastDPSError(f"{name} has weights that {reason}: it is not a trained head of LPIPS.")
    return weight.detach().to(torch.float32).flatten()


def _fault(weights: Tensor) -> str | None:
    """Return why weights cannot be the weights of a head, or None if they can."""
    if not weights.isfinite().all():
        return "are not all finite"
    return "are not all at least 0" if (weights < 0).any() else None
