"""The CPU cores that this process may use, and its memory allocator."""

from __future__ import annotations

import ctypes
import os

#: Parameters of glibc's mallopt (malloc.h), and what they are set to.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_THRESHOLD: 2**30}


def cores() -> int:
    """Those that this process may run on, of all that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed; returns whether it does, which is glibc's alone to do.

    Otherwise a batch's feature maps, of tens of MB each, are given back and taken anew in each step, and the system
    clears every page of them: on two cores a third of the time of AlexNet with batches of 128. The process stays as
    large as it once was.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; Windows takes no None
        return False
    kept = [mallopt(parameter, value) for parameter, value in _LARGEST.items()]
    return all(kept)
