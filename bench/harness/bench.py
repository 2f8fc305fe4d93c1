"""The argument of the stages: device, timing, data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.harness.data import BenchData
from bench.harness.measure import Timing
from fastdps.errors import ConfigError
from fastdps.runtime.machine import keep_freed_memory

#: Images per step. Not the batch size of a recipe, which changes: results of different versions must compare.
BATCH = 50


@dataclass(frozen=True)
class Bench:
    """One run of the bench.

    Attributes:
        device: The device that is measured.
        timing: The durations of the measurements.
        data: The packed images.
        quick: Whether the stages may measure fewer variants.
    """

    device: torch.device
    timing: Timing
    data: BenchData
    quick: bool

    def __post_init__(self) -> None:
        keep_freed_memory()  # as the commands of fastdps do

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"


def find_device(name: str | None) -> torch.device:
    """Return the device that the commands of fastdps use: the first GPU if there is one.

    Args:
        name: "cpu" or "cuda" to require that device; None for any.

    Returns:
        The device.

    Raises:
        ConfigError: The required device is another one; training would not run there.
    """
    if name not in (None, "cpu") and not torch.cuda.is_available():
        raise ConfigError(f"--device is {name}, but torch finds no CUDA; use --device cpu.")
    if name == "cpu" and torch.cuda.is_available():
        raise ConfigError("fastdps uses the GPU of this machine; to measure its CPU set CUDA_VISIBLE_DEVICES= (empty).")
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
