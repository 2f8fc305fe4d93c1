"""Launch several processes in tests, as users do."""

from __future__ import annotations

import contextlib
from pathlib import Path

from bench.harness.launch import launch_command

__all__ = ["launch_command", "ranks_of"]


def ranks_of(launcher: int) -> dict[int, int]:
    """Return the process ids of the living ranks of a launcher by rank. Each rank has its own session."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            variables = path.joinpath("environ").read_bytes().split(b"\0")
            ranks = [int(variable[5:]) for variable in variables if variable.startswith(b"RANK=")]
            if parent == launcher and ranks:
                found[ranks[0]] = int(path.name)
    return found
