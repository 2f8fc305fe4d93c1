"""The CPU cores of this process, the memory of the machine and of this process, and the memory allocator."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

#: Parameters of glibc's mallopt (malloc.h), and what they are set to.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_THRESHOLD: 2**30}

KIB, MIB = 2**10, 2**20


def cores() -> int:
    """Return the number of CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Return the memory of the machine in bytes; None where the system does not say, such as on Windows."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def keep_freed_memory() -> bool:
    """Make malloc keep freed memory; return True if it does, which only glibc supports.

    Otherwise the feature maps of a batch, of tens of MB each, are returned to the system and allocated again in each
    step, and the system clears all their pages: a third of the time of AlexNet with batches of 128 on two cores. The
    process stays as large as its peak.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; on Windows None is a TypeError
        return False
    kept = [mallopt(parameter, value) for parameter, value in _LARGEST.items()]
    return all(kept)


def peak_memory_MiB() -> float:  # noqa: N802, the unit
    """Return the peak memory of this process so far, in MiB.

    It is read from /proc, because on Linux `ru_maxrss` of a new process starts at the value of its parent.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / MIB if sys.platform == "darwin" else peak / KIB  # bytes there, KiB elsewhere
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / KIB
