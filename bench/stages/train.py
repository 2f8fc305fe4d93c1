"""Training end to end, as `fastdps train` does it. Limit: its slowest part. Baseline: the usual way."""

from __future__ import annotations

import io
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness.bench import BATCH, Bench
from bench.harness.measure import Compared, Measurement, PartRates, Samples, Timed, Workload, spread
from bench.harness.parts import StepParts
from bench.harness.reference import BATCH as REFERENCE_BATCH
from bench.harness.reference import Reference
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import sample_rankings
from fastdps.run_directory import RunDirectory
from fastdps.runtime.machine import cores
from fastdps.shards.format import read_manifest
from fastdps.training.run import train

#: The duration of a sample of training, relative to one of a part: training has a start-up.
LONGER = 5
#: Images of an epoch on a CPU, where an epoch of the full set would take a minute; and if quick.
CPU_IMAGES, QUICK_CPU_IMAGES = 600, 150
PAIRS = len(NAMES) * (len(NAMES) - 1) // 2


@dataclass(frozen=True)
class TrainCase:
    """One row.

    Attributes:
        contexts: The number of contexts.
        variant: What is trained.
        headline: Whether the row goes into the README.
    """

    contexts: int
    variant: str = "lin"
    headline: bool = True

    def __str__(self) -> str:
        return f"{self.variant}, {self.contexts} context{'s' if self.contexts > 1 else ''}"

    @property
    def tuned(self) -> bool:
        """True if the backbone is trained."""
        return self.variant != "lin"

    @property
    def single(self) -> TrainCase:
        """The case of one context that the time of a case of many is compared with."""
        return TUNED if self.tuned else TrainCase(1)

    @property
    def usual(self) -> str:
        """The name of the baseline of the row."""
        return USUAL_TUNED if self.tuned else USUAL


USUAL, USUAL_TUNED = "the usual way", "the usual way with its backbone trained"
TUNED = TrainCase(1, "tune")
CASES = (TrainCase(1), TrainCase(24, headline=False), TrainCase(720), TUNED, TrainCase(720, "shared"))
QUICK_CASES = (TrainCase(1), TrainCase(720))


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure each baseline and each case."""
    cases = QUICK_CASES if bench.quick else CASES
    parts = StepParts(bench, bench.data.small("raw"))
    ranking = sample_rankings(1, NAMES, seed=0)[0]
    files = bench.data.files()
    with ExitStack() as stack:
        runs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        baselines = {
            name: stack.enter_context(
                Reference(files, ranking, bench.device, workers=cores(), train_backbone=name == USUAL_TUNED)
            )
            for name in dict.fromkeys(case.usual for case in cases)
        }
        trainings = {case: TrainingWorkload(training_set(bench), case, runs) for case in cases}
        end_to_end: dict[str, Workload] = {str(case): training for case, training in trainings.items()}
        end_to_end |= {name: baseline.train for name, baseline in baselines.items()}
        parts_works = _parts(parts, cases)
        parts_works |= {f"{USUAL} {name}": work for name, work in baselines[USUAL].parts().items()}
        seconds = dict.fromkeys(end_to_end, bench.timing.seconds * LONGER)
        rates = bench.timing.rates(end_to_end | parts_works, seconds=seconds)
    shared_cores = not bench.on_gpu
    for name in baselines:
        part_rates = PartRates({part: rates[f"{USUAL} {part}"] for part in PARTS}, shared_cores)
        yield Measurement(
            "train",
            f"{name}, 1 context",
            rates[name],
            parts_s=part_rates.seconds if name == USUAL else {},
            notes={"batch_images": REFERENCE_BATCH} | (part_rates.notes(rates[name]) if name == USUAL else {}),
        )
    for case, training in trainings.items():
        samples = rates[str(case)]
        part_rates = PartRates({part: rates[_part(part, case)] for part in PARTS}, shared_cores)
        yield Measurement(
            "train",
            str(case),
            samples,
            limit=part_rates.slowest,
            usual=Compared(case.usual, rates[case.usual]),
            triplets_per_image=case.contexts * PAIRS,
            parts_s=part_rates.seconds,
            notes={
                "data_wait_fraction": statistics.median(training.wait_fractions[-bench.timing.rounds :]),
                "batch_images": BATCH,
                **part_rates.notes(samples),
                **_time_ratio(case, rates),
            },
            headline=case.headline,
        )


#: The parts of training, in the order of the data flow.
PARTS = ("load", "distort", "features", "distances", "heads")


def _part(name: str, case: TrainCase) -> str:
    """Return the name under which a part of a case is measured. Cases share the parts that are the same for them."""
    if name == "heads":
        return f"heads {case.contexts}"
    return f"trained {name}" if case.tuned and name in ("features", "distances") else name


def _parts(parts: StepParts, cases: tuple[TrainCase, ...]) -> dict[str, Workload]:
    """Return the parts of all cases, by the names of `_part`."""
    works: dict[str, Workload] = {
        "load": parts.load(),
        "distort": parts.distort(),
        "features": parts.features(),
        "distances": parts.distances(),
        **{f"heads {contexts}": parts.heads(contexts) for contexts in {case.contexts for case in cases}},
    }
    if any(case.tuned for case in cases):
        works |= {"trained features": parts.trained_features(), "trained distances": parts.trained_distances()}
    return works


def _time_ratio(case: TrainCase, rates: Mapping[str, Samples]) -> dict[str, float]:
    """Return the ratio of the time per image with many contexts to that with one, as the median over rounds."""
    if case.contexts == 1:
        return {}
    pairs = zip(rates[str(case.single)], rates[str(case)], strict=True)
    return {"time_ratio": spread([one / many for one, many in pairs]).median}


def training_set(bench: Bench) -> Path:
    """Return the shard set for training."""
    cpu_images = min(bench.data.images, QUICK_CPU_IMAGES if bench.quick else CPU_IMAGES)
    return bench.data.small("raw", None if bench.on_gpu else cpu_images)


class TrainingWorkload:
    """A workload whose unit is an epoch: `fastdps.train` in this process.

    The rate is that of the last record of the log, which counts from the first batch to the last. The time before, for
    building networks, is measured by the stage `startup`.

    Attributes:
        wait_fractions: The fraction of the time spent waiting for batches, one per call.
    """

    def __init__(self, shards: Path, case: TrainCase, runs: Path) -> None:
        self._samples = read_manifest(shards).samples
        self._run = RunDirectory(runs / str(case))
        self._shards, self._contexts, self._variant = shards, case.contexts, case.variant
        self.wait_fractions: list[float] = []

    def __call__(self, amount: int) -> Timed:
        """Train for `amount` epochs."""
        out = self._run.path
        settings: dict[str, Any] = {"variant": self._variant, "epochs": amount, "draws_kept": 0}
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            train(self._shards, out, contexts=self._contexts, overwrite=True, **settings)
        end = self._run.read_log()[-1]
        self.wait_fractions.append(end["data_wait_fraction"])
        images = amount * self._samples
        return Timed(images, images / end["images_per_s"])
