"""Options for carrying out a run. Imports no torch, so that the command line can show them without it."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fastdps.errors import ConfigError
from fastdps.loading.options import LoadOptions
from fastdps.metric.options import Precision
from fastdps.runtime.machine import memory_bytes
from fastdps.runtime.timeouts import STALL_TIMEOUT_S

Parallel = Literal["data", "contexts"]
Resume = Literal["auto", "never"]

#: Default share of the memory of the machine, and of the free disk space, that moments may take.
MEMORY_SHARE, DISK_SHARE = 0.25, 0.5
#: Bytes that a machine is assumed to have whose system does not say.
UNKNOWN_MEMORY = 8 << 30


@dataclass(frozen=True)
class Execution:
    """Options for computing a step. They change the result only by rounding.

    Attributes:
        precision: Floating-point type of the backbone, see `fastdps.metric.precision`.
        accumulate: Number of pieces in which each process computes its part of a step, one after another. It divides
            the memory needed; the gradients are those of the whole step.
        compile: Run the backbone through `torch.compile`, for long trainings on a GPU. On a CPU it was slower, see
            docs/design.md.
        deterministic: Compute the same bits in every run on the same machine, on GPUs too; slower there.
    """

    precision: Precision = "auto"
    accumulate: int = 1
    compile: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ConfigError(f"--accumulate is {self.accumulate}; it must be at least 1.")


@dataclass(frozen=True)
class CheckpointPolicy:
    """Frequency and number of checkpoints.

    Attributes:
        every_steps: Number of steps between two checkpoints.
        keep: Number of checkpoints to keep, the newest ones.
    """

    every_steps: int = 500
    keep: int = 3

    def __post_init__(self) -> None:
        for name, value in (("--checkpoint-every", self.every_steps), ("--keep-checkpoints", self.keep)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")


@dataclass(frozen=True)
class MomentLimits:
    """Limits of kept moments.

    Attributes:
        memory_bytes: Memory for the moments, and as much again for features while they are computed; None for a quarter
            of the machine's memory.
        disk_bytes: Disk space for moments that exceed it; None for half of the free space.
        directory: Directory of the file, best on a local disk; None for the system's temporary directory.
    """

    memory_bytes: int | None = None
    disk_bytes: int | None = None
    directory: Path | None = None

    def __post_init__(self) -> None:
        for option, value in (("--moments-memory", self.memory_bytes), ("--moments-disk", self.disk_bytes)):
            if value is not None and value < 0:
                raise ConfigError(f"{option} must not be negative, not {value}.")

    @property
    def memory(self) -> int:
        """The limit of the memory in bytes."""
        if self.memory_bytes is not None:
            return self.memory_bytes
        return int(MEMORY_SHARE * (memory_bytes() or UNKNOWN_MEMORY))

    @property
    def disk(self) -> int:
        """The limit of the disk space in bytes."""
        if self.disk_bytes is not None:
            return self.disk_bytes
        return int(DISK_SHARE * shutil.disk_usage(self.directory or tempfile.gettempdir()).free)


@dataclass(frozen=True)
class TrainOptions:
    """Options for carrying out a run. They change the result only by rounding.

    Attributes:
        execution: Precision, gradient accumulation, compilation, determinism.
        checkpoints: When checkpoints are written and how many are kept.
        parallel: With a trained backbone per context: "data", all processes train one context after another, or
            "contexts", each process trains contexts of its own.
        resume: What to do if `out` holds a run: "auto" resumes it, "never" raises an error.
        stall_timeout_s: Seconds in one step after which a process counts as hung and the job is aborted.
        trackers: Experiment trackers of Accelerate besides log.jsonl, such as ("tensorboard",).
        size: Side in pixels to which images are resized while loading, None for their packed size.
        loading: How shards are read.
        moments: Limits of the kept moments of a judgement set, or of kept draws, for each process.
        profile: Measure the time of each stage of a training, see `fastdps.training.profile`.
        argv: The words of the command line that starts the run, for `config.json`; None for a call from Python.
    """

    execution: Execution = field(default_factory=Execution)
    checkpoints: CheckpointPolicy = field(default_factory=CheckpointPolicy)
    parallel: Parallel = "data"
    resume: Resume = "auto"
    stall_timeout_s: float = STALL_TIMEOUT_S
    trackers: tuple[str, ...] = ()
    size: int | None = None
    loading: LoadOptions = field(default_factory=LoadOptions)
    moments: MomentLimits = field(default_factory=MomentLimits)
    profile: bool = False
    argv: tuple[str, ...] | None = None
