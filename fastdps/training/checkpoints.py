"""Checkpoints of a training: files that it can go on from, the last few of them.

    CHECKPOINTS/step-000000120.safetensors

The file has the tensors that the training names, and as metadata, all strings:

    format, format_version    FORMAT and FORMAT_VERSION
    state                     JSON: what else the training needs
    sha256                    of the tensors and the state
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fastdps.errors import CheckpointError
from fastdps.metric.weights import tensors_sha256
from fastdps.runtime.files import PARTIAL, atomic_write

FORMAT = "fastdps-checkpoint"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a training goes on from: tensors by name, and a state that JSON can hold."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file whole. Raises `FastDPSError` when that fails; what had the name before is kept then."""
        state = json.dumps(self.state)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        metadata = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "state": state,
            "sha256": _sha256(tensors, state),
        }
        with atomic_write(path) as file:
            file.write(save(tensors, metadata))

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read and check a file, its tensors to the CPU. Raises `CheckpointError` when it is not whole."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a checkpoint of fastdps.")
        if metadata.get("format_version") != str(FORMAT_VERSION):
            raise CheckpointError(f"{path} has format version {metadata.get('format_version')}, not {FORMAT_VERSION}.")
        state = metadata.get("state", "")
        if metadata.get("sha256") != _sha256(tensors, state):
            raise CheckpointError(f"{path} is damaged: its content does not have the sha256 that it was written with.")
        return cls(tensors, json.loads(state))


class Checkpoints:
    """The checkpoints in one directory, of which the last `keep` stay."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self._keep = keep

    def paths(self) -> list[Path]:
        """The files that are there, the newest first."""
        return sorted(self.directory.glob("step-*.safetensors"), reverse=True)

    def save(self, step: int, checkpoint: Checkpoint) -> Path:
        """Write the state after `step` steps, then remove what is older than the last few. Raises `FastDPSError`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"step-{step:09d}.safetensors"
        checkpoint.save(path)
        for old in (*self.paths()[self._keep :], *self.directory.glob("*" + PARTIAL)):
            old.unlink(missing_ok=True)
        return path

    def newest(self, report: Callable[[str], None]) -> Checkpoint | None:
        """The newest one that is whole; `report` is told of every newer one that is not. None if there is none."""
        for path in self.paths():
            try:
                return Checkpoint.load(path)
            except CheckpointError as error:
                report(f"{error} Going on from the one before it.")
        return None

    def remove(self) -> None:
        """Remove all of them."""
        for path in self.directory.glob("step-*"):
            path.unlink()


def _sha256(tensors: dict[str, Tensor], state: str) -> str:
    return hashlib.sha256(f"{tensors_sha256(tensors)}\n{state}".encode()).hexdigest()
