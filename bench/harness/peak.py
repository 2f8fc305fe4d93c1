"""The peak memory of one case: `python -m bench.harness.peak CASE`, run in a separate process per case.

It prints one line of JSON: `peak_MiB` of the process, and `cuda_peak_MiB` of the GPU (null without a GPU).
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdps.commands.options import Parser
from fastdps.runtime.machine import peak_memory_MiB

if TYPE_CHECKING:
    from bench.harness.bench import Bench

#: Batches that a part processes. Memory grows during the first ones.
BATCHES = 5
MIB = 2**20
SIZE = 64
LOADED_BATCH = 128

#: Runs a case. Imports are inside the functions, so that each case has only its own modules in memory.
PeakCase = Callable[[argparse.Namespace], None]


def _imports(_: argparse.Namespace) -> None:
    """Import what training imports, and nothing else."""
    names = ["fastdps.training.run", "torchvision", "kornia", "safetensors.torch"]
    for name in names + ["nvidia.dali.fn"] * bool(find_spec("nvidia") and find_spec("nvidia.dali")):
        import_module(name)


def _pack(where: argparse.Namespace) -> None:
    from fastdps.packing.options import PackOptions
    from fastdps.packing.pack import pack
    from fastdps.packing.sources.folder import Folder

    with tempfile.TemporaryDirectory() as out:
        pack(Folder(where.photographs), Path(out) / "set", PackOptions(encoding="raw", size=SIZE), workers=1)


def _bench(where: argparse.Namespace) -> Bench:
    """Return the argument of stages, for the device that training uses."""
    from bench.harness.bench import Bench, find_device
    from bench.harness.data import BenchData, find_photos
    from bench.harness.measure import Timing

    device = find_device(None)
    return Bench(device, Timing(1, 0, device), BenchData(where.shards, where.images, find_photos()), quick=True)


def _load(full_size: bool) -> PeakCase:
    def work(where: argparse.Namespace) -> None:
        from bench.harness.parts import load_work
        from fastdps.loading.loader import open_shards

        bench = _bench(where)
        directory = bench.data.photographs(None) if full_size else bench.data.small("raw")
        load_work(open_shards(directory, batch_size=LOADED_BATCH, size=SIZE, device=bench.device))(1)

    return work


def _part(name: str, *arguments: int) -> PeakCase:
    def work(where: argparse.Namespace) -> None:
        from bench.harness.parts import StepParts

        bench = _bench(where)
        getattr(StepParts(bench, bench.data.small("raw")), name)(*arguments)(BATCHES)

    return work


def _train(contexts: int | str, **settings: Any) -> PeakCase:
    def work(where: argparse.Namespace) -> None:
        from fastdps.training.run import train

        shards = _bench(where).data.small("raw")
        with tempfile.TemporaryDirectory() as out, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            train(shards, f"{out}/run", contexts=contexts, epochs=1, max_steps=BATCHES, **settings)

    return work


def _evaluate(where: argparse.Namespace) -> None:
    from bench.harness.parts import StepParts, score_work

    bench = _bench(where)
    score_work(StepParts(bench, bench.data.small("raw")))(BATCHES)


#: The cases by name. Every other case contains the first.
CASES: dict[str, PeakCase] = {
    "imports alone": _imports,
    "pack, one process": _pack,
    "load, raw 64 px, batches of 128": _load(full_size=False),
    "load, JPEG in full size, batches of 128": _load(full_size=True),
    "distort": _part("distort"),
    "features": _part("features"),
    "distances": _part("distances"),
    "heads, 720 contexts": _part("heads", 720),
    "train, 1 context": _train(1),
    "train, 720 contexts, batches of 128": _train("all", batch_size=128),
    "train, tune, 1 context": _train(1, variant="tune"),
    "evaluate, 720 contexts": _evaluate,
}


def cuda_peak_MiB() -> float | None:  # noqa: N802
    """Return the peak GPU memory that torch has reserved, in MiB; None without torch or without a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_reserved() / MIB


def main() -> None:
    """Run one case and print its peak memory."""
    parser = Parser(prog="python -m bench.harness.peak")
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True)
    arguments = parser.parse_args()
    CASES[arguments.case](arguments)
    print(json.dumps({"peak_MiB": peak_memory_MiB(), "cuda_peak_MiB": cuda_peak_MiB()}))


if __name__ == "__main__":
    main()
