"""How tests start several processes, as users do."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


def launch_command(processes: int, *, machines: int = 1, rank: int = 0, port: int = 0) -> list[str]:
    """`accelerate launch` on this machine, or on one of several that meet on loopback; the script follows."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--mixed_precision=no", "--dynamo_backend=no"]
    command += [f"--num_processes={processes}", f"--num_machines={machines}", f"--main_process_port={port}"]
    if processes > 1:
        command.append("--multi_gpu")
    if machines > 1:
        command += [f"--machine_rank={rank}", "--main_process_ip=127.0.0.1"]
    return command


def ranks_of(launcher: int) -> dict[int, int]:
    """The process ids of the living ranks of a launcher, which are in sessions of their own."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            variables = path.joinpath("environ").read_bytes().split(b"\0")
            ranks = [int(variable[5:]) for variable in variables if variable.startswith(b"RANK=")]
            if parent == launcher and ranks:
                found[ranks[0]] = int(path.name)
    return found
