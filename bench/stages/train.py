"""Training end to end, as `fastdps train` does it, against its slowest part alone and against the usual way."""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from bench.bench import Bench, cores
from bench.measure import Compared, Measurement, Timed, Work, spread
from bench.parts import Parts
from bench.reference import BATCH as REFERENCE_BATCH
from bench.reference import Reference
from fastdps.contexts import sample_rankings
from fastdps.distortions import NAMES
from fastdps.runs import Run
from fastdps.shards import read_manifest
from fastdps.train import add_arguments, run_train

CONTEXTS = (1, 24, 720)
#: A sample of training takes this many times as long as one of a part: it has a start.
LONGER = 5
#: Images of an epoch on a CPU, where one of the whole set would take a minute; and if quick.
CPU_IMAGES, QUICK_CPU_IMAGES = 600, 150


def run(bench: Bench) -> Iterator[Measurement]:
    """One row for the usual way, and one for each number of contexts."""
    cpu_images = min(bench.data.images, QUICK_CPU_IMAGES if bench.quick else CPU_IMAGES)
    shards = bench.data.small("raw", None if bench.on_gpu else cpu_images)
    parts = Parts(bench, bench.data.small("raw"))
    contexts = CONTEXTS[::2] if bench.quick else CONTEXTS
    ranking = sample_rankings(1, NAMES, seed=0)[0]
    files = bench.data.files()
    with tempfile.TemporaryDirectory() as runs, Reference(files, ranking, bench.device, workers=cores()) as usual:
        trainings = {k: Training(shards, k, Path(runs)) for k in contexts}
        whole: dict[str, Work] = {f"train {k}": training for k, training in trainings.items()}
        whole["usual"] = usual.train
        alone: dict[str, Work] = {
            "load": parts.load(),
            "distort": parts.distort(),
            "features": parts.features(),
            "distances": parts.distances(),
            **{f"heads {k}": parts.heads(k) for k in contexts},
        }
        rates = bench.timing.rates(whole | alone, seconds=dict.fromkeys(whole, bench.timing.seconds * LONGER))
    usual_way = Compared("the usual way", rates["usual"])
    yield Measurement("train", "the usual way, 1 context", rates["usual"], notes={"batch_images": REFERENCE_BATCH})
    for k, training in trainings.items():
        stages = {name: rates[name] for name in ("load", "distort", "features", "distances")}
        stages["heads"] = rates[f"heads {k}"]
        slowest = min(stages, key=lambda name: spread(stages[name]).median)
        yield Measurement(
            "train",
            f"lin, {k} context{'s' if k > 1 else ''}",
            rates[f"train {k}"],
            limit=Compared(f"{slowest} alone", stages[slowest]),
            usual=usual_way,
            triplets_per_image=k * len(NAMES) * (len(NAMES) - 1) // 2,
            parts_s={name: 1 / spread(samples).median for name, samples in stages.items()},
            notes={"data_wait_fraction": statistics.median(training.wait_fractions[-bench.timing.rounds :])},
            headline=k != CONTEXTS[1],
        )


class Training:
    """Work whose unit is an epoch: the command `fastdps train`, in this process.

    Its rate is that of the last record of its log, which counts from the first batch to the last; what comes before,
    the building of networks, is the stage `startup`'s. `wait_fractions` are the shares of that time spent waiting for
    batches, one for each call.
    """

    def __init__(self, shards: Path, contexts: int, runs: Path) -> None:
        self._samples = read_manifest(shards).samples
        self._run = Run(runs / str(contexts))
        self._options = ["--shards", str(shards), "--contexts", str(contexts), "--out", str(self._run.path)]
        self.wait_fractions: list[float] = []

    def __call__(self, amount: int) -> Timed:
        """Train for `amount` epochs."""
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        arguments = parser.parse_args([*self._options, "--epochs", str(amount), "--overwrite"])
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            run_train(arguments)
        end = self._run.read_log()[-1]
        self.wait_fractions.append(end["data_wait_fraction"])
        images = amount * self._samples
        return Timed(images, images / end["images_per_s"])
