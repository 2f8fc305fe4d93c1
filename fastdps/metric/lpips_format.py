"""Heads in the checkpoint layout of the `lpips` package (0.1.x), so that metrics go from one to the other.

    lin{i}.model.1.weight (1, C_i, 1, 1), one per tap, the shallowest first <--> one row of weights (1, C)

It holds heads only; both sides bring the same torchvision backbone. The heads of LPIPS's version 0.1 mean here what
they mean there; those of 0.0 were trained on images that were not normalised.
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
#: What LPIPS without dropout calls its heads, and what a checkpoint of a whole LPIPS has besides `lin{i}`.
_WITHOUT_DROPOUT = re.compile(r"lins?\.?\d+\.model\.0\.weight")
_BACKBONE = "net."


def heads_from_lpips(source: str | Path | Mapping[str, Tensor]) -> Tensor:
    """The heads of LPIPS as one context's channel weights, (1, C) float32, for `PerceptualMetric(backbone, weights)`.

    `source` is a checkpoint such as the package's `weights/v0.1/alex.pth`, or its state dict. Raises `FastDPSError` for
    a file that cannot be read and for anything but heads: other keys or shapes, a gap in the numbering, weights that
    are negative or no numbers.

    Keys `model.0` come from an LPIPS made with `use_dropout=False`, which ignores a checkpoint with `model.1` without
    a word and keeps random heads; they are refused, because nobody can tell which they are.
    """
    if isinstance(source, Mapping):
        name, state = "the state dict", source
    else:
        name, state = str(source), _load(Path(source))
    if any(_WITHOUT_DROPOUT.fullmatch(key) for key in state):
        raise FastDPSError(
            f"{name} has keys `model.0`, of an LPIPS with use_dropout=False, which keeps random heads when it loads "
            "trained ones. If these were trained, rename the keys to `model.1`; if not, make LPIPS with "
            "use_dropout=True, which changes nothing when it is not training, and save it again."
        )
    if unknown := [key for key in state if not _KEY.fullmatch(key)]:
        has_backbone = any(key.startswith(_BACKBONE) for key in unknown)
        why = " It has a backbone, which may have been trained with the heads." if has_backbone else ""
        raise FastDPSError(
            f"{name} has {', '.join(unknown[:3])}{' and more' if len(unknown) > 3 else ''} besides heads "
            f"`lin{{i}}.model.1.weight`.{why} Pass a state dict with those keys alone."
        )
    keys = [_key(tap) for tap in range(max(1, len(state)))]
    if missing := [key for key in keys if key not in state]:
        raise FastDPSError(f"{name} lacks the key {missing[0]}: it has {len(state)} heads. Restore it, or train again.")
    return torch.cat([_head(state[key], f"{key} of {name}") for key in keys])[None]


def heads_to_lpips(weights: Tensor, channels: Sequence[int]) -> dict[str, Tensor]:
    """One context's channel weights, (C,) or (1, C), as LPIPS's state dict; `channels` are those of each tap.

    `torch.save` it, then `lpips.LPIPS(net="alex", model_path=PATH)` measures the distances of that context. Only a
    metric with the comparison `spatial` on a backbone that LPIPS has (alexnet, vgg16, squeezenet1_1), not trained
    itself, has the same distances there. LPIPS loads without checking keys; these are those that it takes.

    Raises `ConfigError` for more than one context, channels that do not add up, or weights that are negative or no
    numbers.
    """
    row = weights.flatten()
    if weights.shape not in ((len(row),), (1, len(row))):
        raise ConfigError(f"LPIPS has one context, not weights {tuple(weights.shape)}; give one row of them.")
    if len(row) != sum(channels):
        raise ConfigError(f"{len(row)} weights do not fit taps of {', '.join(map(str, channels))} channels.")
    if reason := _fault(row):
        raise ConfigError(f"The weights {reason}, as those of a metric must be. Train again.")
    parts = row.detach().to("cpu", torch.float32).split(list(channels))
    return {_key(tap): part.clone().view(1, -1, 1, 1) for tap, part in enumerate(parts)}


def _key(tap: int) -> str:
    return f"lin{tap}.model.1.weight"


def _load(path: Path) -> Mapping[str, Any]:
    """The state dict in a file, read without running what a pickle may hold."""
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
    """The (C_i,) float32 weights of one head; `name` is for messages."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() != 4:
        raise FastDPSError(f"{name} is no tensor (1, C, 1, 1) of floats. Restore it.")
    if weight.shape != (1, weight.shape[1], 1, 1):
        raise FastDPSError(f"{name} is {tuple(weight.shape)}, not (1, C, 1, 1): it is no head of LPIPS.")
    if reason := _fault(weight):
        raise FastDPSError(f"{name} has weights that {reason}: it is no trained head of LPIPS.")
    return weight.detach().to(torch.float32).flatten()


def _fault(weights: Tensor) -> str | None:
    """What keeps weights from being those of a head, if anything."""
    if not weights.isfinite().all():
        return "are not all numbers"
    return "are not all at least 0" if (weights < 0).any() else None
