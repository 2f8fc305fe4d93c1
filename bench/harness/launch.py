"""The command that launches several processes, as users launch them."""

from __future__ import annotations

import sys


def launch_command(processes: int, *, machines: int = 1, rank: int = 0, port: int = 0) -> list[str]:
    """Return the `accelerate launch` command line, to which the script and its arguments are appended.

    Args:
        processes: The number of processes.
        machines: The number of machines, all simulated on loopback.
        rank: The rank of this machine.
        port: The port of the main process; 0 for a free one.

    Returns:
        The command and its options.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--mixed_precision=no", "--dynamo_backend=no"]
    command += [f"--num_processes={processes}", f"--num_machines={machines}", f"--main_process_port={port}"]
    if processes > 1:
        command.append("--multi_gpu")
    if machines > 1:
        command += [f"--machine_rank={rank}", "--main_process_ip=127.0.0.1"]
    return command
