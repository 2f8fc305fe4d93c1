"""Freed memory is kept: page faults counted by the operating system, in separate processes."""

import platform
import subprocess
import sys

import pytest

#: Prints the pages (of 4 KiB) that the system had to provide for each of ten steps of four blocks of 40 MB.
STEPS = """
import resource, sys
from fastdps.runtime.machine import keep_freed_memory
import torch
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    blocks = [torch.ones(10_000_000) for _ in range(4)]
    return sum(len(block) for block in blocks)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
before = faults()
for _ in range(10):
    step()
print((faults() - before) // 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_steps_reuse_the_memory_of_earlier_steps():
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("give back", "keep")
    )
    # Huge pages would reduce the count, but none is as large as a block.
    assert given_back >= 4
    assert kept < given_back / 10
