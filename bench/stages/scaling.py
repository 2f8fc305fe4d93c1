"""Scaling: the same training in several processes, started by `accelerate launch`, with the rates of the runs' logs.

On a CPU, two processes of one thread are compared with one process of two threads: the same cores. On GPUs, 1, 2, 4,
... and all of them are compared with N times the rate of one.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.harness.bench import BATCH, Bench
from bench.harness.launch import launch_command
from bench.harness.measure import Compared, Measurement, Timed, Timing, Workload
from bench.stages.train import training_set
from fastdps.errors import FastDPSError
from fastdps.run_directory import RunDirectory
from fastdps.runtime.machine import cores
from fastdps.shards.format import read_manifest

#: Every sample has a start-up of some seconds, so there are fewer and longer samples than in other stages.
ROUNDS, LONGER = 3, 10
QUICK_EPOCHS = 4
CONTEXTS = 720
#: The time limit of a launch, after which it counts as hung.
TIMEOUT_S = 1800


@dataclass(frozen=True)
class LaunchCase:
    """The configuration of a launch.

    Attributes:
        processes: The number of processes.
        threads: The threads of each process.
        batch_images: The images of a step of all processes together.
    """

    processes: int
    threads: int
    batch_images: int = BATCH

    def __str__(self) -> str:
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        return f"{processes} of {self.threads} thread{'s' if self.threads > 1 else ''}"

    def command(self, arguments: list[str]) -> list[str]:
        """Return the command line that trains in these processes."""
        launch = launch_command(self.processes) if self.processes > 1 else [sys.executable]
        return [*launch, "-m", "fastdps.train", *arguments]


def cases(gpus: int) -> list[LaunchCase]:
    """Return the cases: two on a CPU (`gpus` is 0); otherwise 1, 2, 4, ... processes, and one per GPU.

    On a CPU, the processes share the images of a step. On GPUs, every process has a full batch, because fewer images
    would leave the GPU idle.
    """
    if not gpus:
        return [LaunchCase(1, 2), LaunchCase(2, 1)]
    counts = sorted({2**power for power in range(gpus.bit_length())} | {gpus})
    return [LaunchCase(count, max(1, cores() // count), count * BATCH) for count in counts]


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure each case. The first is the reference of the others."""
    shards = training_set(bench)
    rounds, seconds = (1, None) if bench.quick else (ROUNDS, bench.timing.seconds * LONGER)
    every = cases(torch.cuda.device_count() if bench.on_gpu else 0)
    with tempfile.TemporaryDirectory() as runs:
        works: dict[str, Workload] = {str(case): _launches(case, shards, Path(runs), seconds) for case in every}
        rates = Timing(rounds, 0, bench.device).single_rates(works)
    one = rates[str(every[0])]
    for case in every:
        limit = None
        if case != every[0]:
            times = case.processes if bench.on_gpu else 1
            name = f"{case.processes} times one" if bench.on_gpu else str(every[0])
            limit = Compared(name, tuple(times * rate for rate in one))
        yield Measurement(
            "scaling",
            f"lin, {CONTEXTS} contexts, {case}",
            rates[str(case)],
            limit=limit,
            notes={
                "processes": case.processes,
                "threads_per_process": case.threads,
                "contexts": CONTEXTS,
                "batch_images": case.batch_images,
            },
        )


def _launches(case: LaunchCase, shards: Path, runs: Path, seconds: float | None) -> Workload:
    """Return a workload that trains from scratch for about `seconds`, or for `QUICK_EPOCHS` epochs if None.

    With `seconds`, a first launch of one epoch finds the number of epochs, and warms up.
    """
    epochs = QUICK_EPOCHS
    if seconds is not None:
        first = train_in_processes(case, shards, runs / str(case), epochs=1)
        epochs = max(1, math.ceil(seconds / first.seconds))
    return lambda _: train_in_processes(case, shards, runs / str(case), epochs)


def train_in_processes(case: LaunchCase, shards: Path, out: Path, epochs: int) -> Timed:
    """Launch one training, and read its rate from its log, which counts from the first batch to the last.

    Args:
        case: The configuration of the launch.
        shards: The shard set.
        out: The run directory.
        epochs: The number of epochs.

    Returns:
        The images and the seconds of training.

    Raises:
        FastDPSError: The command failed (the message has its output), took longer than `TIMEOUT_S`, or ran in another
            number of processes.
    """
    arguments = ["--shards", str(shards), "--contexts", str(CONTEXTS), "--epochs", str(epochs), "--out", str(out)]
    arguments += ["--draws-kept", "0"]
    command = case.command([*arguments, "--batch-size", str(case.batch_images), "--overwrite"])
    environment = os.environ | {"OMP_NUM_THREADS": str(case.threads)}
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise FastDPSError(f"{' '.join(command)} did not end within {TIMEOUT_S} s.") from error
    if result.returncode:
        raise FastDPSError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    end = next(record for record in reversed(RunDirectory(out).read_log()) if record["event"] == "end")
    if end["processes"] != case.processes:
        raise FastDPSError(f"{' '.join(command)} ran in {end['processes']} processes, not in {case.processes}.")
    images = epochs * read_manifest(shards).samples
    return Timed(images, images / end["images_per_s"])
