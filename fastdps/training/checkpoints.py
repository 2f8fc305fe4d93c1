"""Checkpoints: the files from which a training resumes.

    CHECKPOINTS/step-000000120.safetensors

A file holds the tensors of the training, and as metadata, all strings:

    format, format_version    FORMAT and FORMAT_VERSION
    state                     JSON: the rest of the state, and the hash of the run's settings (see `SETTINGS`)
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

from fastdps.errors import CheckpointError, ConfigError
from fastdps.metric.weights import tensors_sha256
from fastdps.runtime.files import PARTIAL, atomic_write

FORMAT = "fastdps-checkpoint"
FORMAT_VERSION = 1
#: Key of the state: the hash of the settings, contexts and data. Checkpoints of version 0.1.0 do not have it.
SETTINGS = "settings_sha256"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training: tensors by name, and the rest as JSON types."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file atomically. Raises `FastDPSError` on failure, which keeps an earlier file of that name."""
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
        """Read and verify a file, with its tensors on the CPU. Raises `CheckpointError` if it is damaged."""
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
            raise CheckpointError(f"{path} is damaged: the sha256 of its content differs from the recorded one.")
        return cls(tensors, json.loads(state))


class Checkpoints:
    """The checkpoints in one directory, of which the newest `keep` are kept."""

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self._keep = keep

    def paths(self) -> list[Path]:
        """Return the files, the newest first."""
        return sorted(self.directory.glob("step-*.safetensors"), reverse=True)

    def save(self, step: int, checkpoint: Checkpoint) -> Path:
        """Write the state after `step` steps, then remove all but the newest `keep`. Raises `FastDPSError`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"step-{step:09d}.safetensors"
        checkpoint.save(path)
        for old in (*self.paths()[self._keep :], *self.directory.glob("*" + PARTIAL)):
            old.unlink(missing_ok=True)
        return path

    def newest(self, report: Callable[[str], None], settings_sha256: str | None = None) -> Checkpoint | None:
        """Return the newest intact checkpoint.

        Args:
            report: Called with a message for each damaged newer checkpoint.
            settings_sha256: The hash of the settings of the training that resumes; None accepts any.

        Returns:
            The checkpoint, or None if there is none.

        Raises:
            ConfigError: The checkpoint belongs to a training with other settings or data.
        """
        for path in self.paths():
            try:
                found = Checkpoint.load(path)
            except CheckpointError as error:
                report(f"{error} Resuming from the checkpoint before it.")
                continue
            before = found.state.get(SETTINGS)
            if None not in (before, settings_sha256) and before != settings_sha256:
                raise ConfigError(
                    f"{path} belongs to a training with other settings or data than this run: two trainings wrote into "
                    "one directory. Remove the checkpoints that are not of this run, or pass --overwrite to train from "
                    "scratch."
                )
            return found
        return None


def _sha256(tensors: dict[str, Tensor], state: str) -> str:
    return hashlib.sha256(f"{tensors_sha256(tensors)}\n{state}".encode()).hexdigest()
