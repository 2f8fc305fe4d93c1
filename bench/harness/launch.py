"""How several processes are started, as users do it."""

from __future__ import annotations

import sys


def launch_command(processes: int, *, machines: int = 1, rank: int = 0, port: int = 0) -> list[str]:
    """`accelerate launch` on this machine, or on one of several that meet on loopback; the script follows.

    Port 0 is any that is free.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--mixed_precision=no", "--dynamo_backend=no"]
    command += [f"--num_processes={processes}", f"--num_machines={machines}", f"--main_process_port={port}"]
    if processes > 1:
        command.append("--multi_gpu")
    if machines > 1:
        command += [f"--machine_rank={rank}", "--main_process_ip=127.0.0.1"]
    return command
