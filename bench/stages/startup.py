"""Start-up: `fastdps --help`, and `fastdps train` up to its first step, each in a new process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec

from bench.harness.bench import BATCH, Bench
from bench.harness.measure import Compared, Measurement, Samples, Timed, Timing, Workload
from fastdps.errors import FastDPSError

#: A start takes seconds and varies little. A quick bench has one round.
ROUNDS = 3
IMPORTS = "import torch, torchvision, kornia, accelerate, safetensors.torch, rich.progress"


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure in seconds. The limits are the start of Python, and the imports that training needs."""
    shards = bench.data.small("raw", BATCH)
    imports = IMPORTS + ("; import nvidia.dali.fn" if find_spec("nvidia.dali") else "")
    training = ["-m", "fastdps", "train", "--shards", str(shards), "--epochs", "1", "--overwrite"]
    with tempfile.TemporaryDirectory() as directory:
        cases: dict[str, Workload] = {
            "python": _process(["-c", "import argparse"]),
            "help": _process(["-m", "fastdps", "--help"]),
            "imports": _process(["-c", f"{imports}; print('imported', flush=True)"], until="imported"),
            "first step": _process([*training, "--out", f"{directory}/run"], until="epoch 1/1"),
        }
        timing = Timing(1 if bench.quick else ROUNDS, bench.timing.seconds, bench.device)
        seconds = {name: tuple(1 / rate for rate in rates) for name, rates in timing.single_rates(cases).items()}
    yield _row("fastdps --help", seconds["help"], Compared("Python alone", seconds["python"]))
    yield _row("fastdps train to its first step", seconds["first step"], Compared("imports alone", seconds["imports"]))


def _row(what: str, samples: Samples, limit: Compared) -> Measurement:
    return Measurement("startup", what, samples, unit="s", limit=limit)


def _process(arguments: list[str], *, until: str = "") -> Workload:
    """Return a workload that runs Python once, for any amount of work.

    The time ends with the process or, with `until`, at the first line of output (stdout or stderr) that starts with it.
    The workload raises `FastDPSError` with the output if the process fails or there is no such line.
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
