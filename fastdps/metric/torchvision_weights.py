"""Pretrained weights from torchvision's downloads, read without executing code.

torchvision's own loader unpickles whatever lies in the cache of torch.hub under the expected name, without a check, and
a pickle can run any command. Here the file must have the sha256 that its name ends with (its first 8 digits or more),
and is read with `weights_only=True`, because 8 digits do not stop an attacker.
"""

from __future__ import annotations

import hashlib
import re
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import torch
import torchvision
from torch import Tensor

from fastdps.errors import WeightsMismatchError
from fastdps.metric.weight_sources import NETWORK_TIMEOUT_S, State, UnavailableError

#: The digits of the sha256 in a file name, as in `alexnet-owt-7be5be79.pth`.
_DIGITS = re.compile(r"-([0-9a-f]{8,64})\.pth")
#: Layers of DenseNet, which have outdated names in torchvision's files: `denselayer1.norm.1` is `denselayer1.norm1`.
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")


def load_from_torchvision(backbone: str) -> State:
    """Return all tensors of a network, with torchvision's names, from the cache of torch.hub or a download into it.

    Raises:
        UnavailableError: torchvision has no such weights, or they cannot be downloaded.
        WeightsMismatchError: The file in the cache is damaged or is not a plain state dict.
    """
    try:
        url = torchvision.models.get_model_weights(backbone)["IMAGENET1K_V1"].url
    except (ValueError, KeyError):
        raise UnavailableError(
            f"torchvision {torchvision.__version__} has no IMAGENET1K_V1 weights of that name"
        ) from None
    hub = torch.hub.get_dir()
    if hub.startswith("~"):  # there is no home directory, and torch.hub takes this for a name
        raise UnavailableError("there is no place for the download: set TORCH_HOME or XDG_CACHE_HOME to a directory")
    path = Path(hub, "checkpoints", Path(urlsplit(url).path).name)
    found = _DIGITS.search(path.name)
    digits = found[1] if found else ""
    if not path.exists():
        _download(url, path, digits)
    return {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in _read(path, digits).items()}


def _download(url: str, path: Path, digits: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _network_timeout():
            torch.hub.download_url_to_file(url, str(path), digits or None, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # without network an OSError, for a wrong hash a RuntimeError
        raise UnavailableError(f"{url}: {error}") from error


def _read(path: Path, digits: str) -> Mapping[str, Tensor]:
    """Return the state dict in a file whose sha256 starts with `digits`."""
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            state = _unpickle(file, path) if actual.startswith(digits) else None
    except OSError as error:
        raise WeightsMismatchError(f"{path} cannot be read: {error}. Replace or remove it.") from error
    if state is None:
        raise WeightsMismatchError(
            f"{path} is damaged or not torchvision's: its sha256 is {actual}, but must start with {digits}, as in its "
            "name. It was not loaded. Remove it; it is then downloaded again."
        )
    return state


def _unpickle(file: BinaryIO, path: Path) -> Mapping[str, Tensor]:
    """Return the state dict in an open file, read without executing code in its pickle."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols of pickle
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises many types on damaged data
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise WeightsMismatchError(
            f"{path} cannot be read as tensors without executing code: {reason}. Remove it; it is then downloaded "
            "again."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsMismatchError(f"{path} is not a state dict of tensors. Remove it; it is then downloaded again.")
    return state


@contextmanager
def _network_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
