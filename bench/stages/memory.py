"""Memory: the peak of each stage in a separate process. The memory of the imports is part of each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench.harness.bench import Bench
from bench.harness.data import DISTINCT, BenchData
from bench.harness.measure import Compared, Measurement
from bench.harness.peak import CASES
from bench.stages.pack import photographs
from fastdps.errors import FastDPSError

#: Few rounds suffice, since peaks vary little.
ROUNDS = 3
IMPORTS, PACK, *_ = CASES
#: The row with a promised limit, in MiB.
PROMISED, PROMISED_MIB = "train, 720 contexts, batches of 128", 2048


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure each case or, if quick, only the one with a promised limit."""
    data = replace(bench.data, images=min(bench.data.images, DISTINCT))
    source = photographs(bench).root
    data.small("raw")  # packed here, so that packing is not part of any peak
    names = [IMPORTS, *([PROMISED] if bench.quick else list(CASES)[1:])]
    if data.photos:
        data.photographs(None)
    else:
        names = [name for name in names if "full size" not in name]
    rounds = [{name: peak(name, data, source) for name in names} for _ in range(1 if bench.quick else ROUNDS)]
    imports = tuple(found[IMPORTS]["peak_MiB"] for found in rounds)
    for name in names:
        on_gpu = [found[name]["cuda_peak_MiB"] for found in rounds]
        notes = {} if None in on_gpu else {"cuda_peak_MiB": max(on_gpu)}
        if name == PROMISED:
            notes["promised_MiB"] = PROMISED_MIB
        yield Measurement(
            "memory",
            name,
            tuple(found[name]["peak_MiB"] for found in rounds),
            unit="MiB",
            limit=None if name in (IMPORTS, PACK) else Compared(IMPORTS, imports),
            notes=notes,
            headline=name == PROMISED,
        )


def peak(name: str, data: BenchData, source: Path) -> dict[str, float]:
    """Run one case in a new process.

    Args:
        name: A case of `bench.harness.peak.CASES`.
        data: The packed images.
        source: The directory of the photographs, for packing.

    Returns:
        `peak_MiB` and `cuda_peak_MiB`.

    Raises:
        FastDPSError: The process failed; the message has its output.
    """
    command = [sys.executable, "-m", "bench.harness.peak", name, "--shards", str(data.directory)]
    command += ["--photographs", str(source), "--images", str(data.images)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise FastDPSError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])
