"""Checks of the arguments of `open_shards`, and what follows from them on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastdps.errors import ConfigError, SampleError, ShardError
from fastdps.loading.spec import Component, ReadSpec
from fastdps.runtime.machine import cores
from fastdps.shards.format import SCALARS, Manifest
from fastdps.shards.storage import Location


def find_components(manifest: Manifest, wanted: Sequence[str] | None) -> tuple[Component, ...]:
    """Return the wanted components in the order of `wanted`, or all of them. Raises `ConfigError` for unknown names."""
    there = list(manifest.components)
    names = there if wanted is None else list(wanted)
    if unknown := [name for name in names if name not in there]:
        raise ConfigError(f"no component {', '.join(map(repr, unknown))} in this set; it has {', '.join(there)}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"components are {names}; name one or more of {', '.join(there)}, each once")
    return tuple(Component(name, there.index(name), manifest.components[name], name in SCALARS) for name in names)


def find_image_size(location: Location, manifest: Manifest, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return the (height, width) in pixels of the loaded images. Raises `ConfigError` if a size is required."""
    if size is None:
        if manifest.image_size is None:
            raise ConfigError(f"{location} keeps images in their own sizes; give size, e.g. size=64, to batch them")
        return manifest.image_size
    height, width = (size, size) if isinstance(size, int) else size
    check_range("size", height, 1)
    check_range("size", width, 1)
    return height, width


def find_device(device: str | torch.device) -> torch.device:
    """Return the torch device, with its index for CUDA. Raises `ConfigError` if this machine does not have it."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is not known to torch: {error}") from error
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        raise ConfigError(f"device is {device}, but torch finds no CUDA; use device='cpu'")
    index = torch.cuda.current_device() if found.index is None else found.index
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device is {device}, but there are only {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)


def check_votes(votes: Tensor, ids: Tensor, component: Component, spec: ReadSpec) -> None:
    """Raise `SampleError` for a share of votes outside [0, 1], or NaN: losses and scores would look like any other.

    Args:
        votes: The batch of a scalar component, (n,), on the CPU, so that no process waits for its device.
        ids: The sample ids, (n,).
        component: The component.
        spec: The request, for the message.
    """
    if wrong := (~((votes >= 0) & (votes <= 1))).nonzero().flatten().tolist():
        number, share = ids[wrong[0]].item(), votes[wrong[0]].item()
        raise SampleError(
            f"sample {number} of {spec.location} has {share} as {component.name}, not a share of votes in [0, 1]. "
            "Correct the source, and pack it again."
        )


def own_cores() -> int:
    """Return the number of cores per process: those this process may run on, divided among the local processes."""
    return max(1, cores() // local_processes())


def local_processes() -> int:
    """Return the number of processes of the job on this machine."""
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")  # set by torchrun and accelerate
    return max(1, int(local) if local.isdigit() else 1)


def check_range(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raise `ConfigError` unless low <= value < high."""
    if value < low or (high is not None and value >= high):
        upper = "" if high is None else f" and below {high}"
        raise ConfigError(f"{name} is {value}; it must be at least {low}{upper}")


def check_manifest(location: Location, manifest: Manifest) -> None:
    """Raise `ShardError` if a set has no samples, or lacks the size of its raw images."""
    if manifest.samples == 0:
        raise ShardError(f"{location} has no samples. Pack it again from a source that has some.")
    if manifest.encoding == "raw" and manifest.image_size is None:
        raise ShardError(f"the manifest of {location} lacks the image_size of its raw images. Pack it again.")


def check_files(directory: Path, manifest: Manifest) -> None:
    """Raise `ShardError` if a shard or an index of the manifest is missing; lists the directory only once."""
    there = set(os.listdir(directory))
    named = [name for shard in manifest.shards for name in (shard.name, shard.index_name)]
    if missing := [name for name in named if name not in there]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ShardError(
            f"{directory} lacks {', '.join(missing[:3])}{more}, which its manifest names. "
            f"Restore them, or pack the set again; `fastdps check {directory}` checks everything."
        )
