"""Start-up: `fastdps --help`, and `fastdps train` up to its first step, each in a new process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.util import find_spec

from bench.harness.bench import BATCH, Bench
from bench.harness.measure import Compared, Measurement, Samples, Timing, Workload
from bench.harness.timed_process import process_workload

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
            "python": process_workload(["-c", "import argparse"]),
            "help": process_workload(["-m", "fastdps", "--help"]),
            "imports": process_workload(["-c", f"{imports}; print('imported', flush=True)"], until="imported"),
            "first step": process_workload([*training, "--out", f"{directory}/run"], until="epoch 1/1"),
        }
        timing = Timing(1 if bench.quick else ROUNDS, bench.timing.seconds, bench.device)
        seconds = {name: tuple(1 / rate for rate in rates) for name, rates in timing.single_rates(cases).items()}
    yield _row("fastdps --help", seconds["help"], Compared("Python alone", seconds["python"]))
    yield _row("fastdps train to its first step", seconds["first step"], Compared("imports alone", seconds["imports"]))


def _row(what: str, samples: Samples, limit: Compared) -> Measurement:
    return Measurement("startup", what, samples, unit="s", limit=limit)
