"""The door to Accelerate: which processes take part, and on which device; or one process for itself."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from fastdps.errors import ConfigError


def join_processes() -> Accelerator:
    """Join the processes that `accelerate launch` started, or run alone; over gloo where CUDA is absent.

    Raises `ConfigError` when the launcher started more processes than Accelerate sees: each would train alone and all
    would write the same files.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise ConfigError(
            f"{launched} processes were launched, but Accelerate sees {accelerator.num_processes}. "
            "Without GPUs launch with `accelerate launch --multi_gpu --num_processes N`."
        )
    return accelerator


class Alone:
    """One process that works for itself among others, where each has contexts of its own.

    The part of `Accelerator` that training uses, with nobody to talk to.
    """

    num_processes = 1
    process_index = 0

    def __init__(self, accelerator: Accelerator) -> None:
        self.device = accelerator.device
        self.is_main_process = accelerator.is_main_process

    def prepare(self, *objects: Any) -> tuple[Any, ...]:
        """Nothing to prepare."""
        return objects

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:  # noqa: ARG002, the signature is Accelerate's
        """The sum over one process."""
        return tensor

    def backward(self, loss: Tensor) -> None:
        """Compute gradients."""
        loss.backward()

    def free_memory(self) -> None:
        """Nothing is held."""


Processes = Accelerator | Alone
