"""The door to Accelerate: which processes take part, and on which device."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator

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
