"""How numbers are computed: the floating-point type of a backbone (behind it all is float32), and determinism."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """What `auto` means: bfloat16 on GPUs that compute with it, float16 on older ones, float32 elsewhere.

    On a CPU with instructions for bfloat16 AlexNet was 1.1 times as fast with it, which is not worth other results.
    """
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context to run a backbone in."""
    dtype = _TYPES[resolve_precision(precision, device)]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """A context in which the same command on the same machine gives the same bits, on GPUs too; slower there.

    On a CPU that is always so. Raises torch's `RuntimeError` for an operation that has no deterministic algorithm.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
