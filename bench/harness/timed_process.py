"""A workload that runs Python once, and times it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from bench.harness.measure import Timed, Workload
from fastdps.errors import FastDPSError


def process_workload(arguments: Sequence[str], *, until: str = "") -> Workload:
    """Return a workload that runs Python once, for any amount of work.

    The time begins with the process and ends with it or, with `until`, at the first line of output (stdout or stderr)
    that starts with it. The workload raises `FastDPSError` with the output if the process fails or there is no such
    line.

    Args:
        arguments: The command line after `python`.
        until: The start of the line.
    """

    def work(_: int) -> Timed:
        started_s = time.perf_counter()
        elapsed_s, lines = None, []
        command = [sys.executable, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout or ():
                lines.append(line)
                if until and elapsed_s is None and line.startswith(until):
                    elapsed_s = time.perf_counter() - started_s
        if not until:
            elapsed_s = time.perf_counter() - started_s
        if process.returncode or elapsed_s is None:
            raise FastDPSError(f"{' '.join(arguments)} failed:\n{''.join(lines)}")
        return Timed(1, elapsed_s)

    return work
