"""Time to accuracy: whole processes from packed images to an adapted metric. Baseline: the usual way, for ONE context.

560 images --> fastdps train, imports and weights included --> metric     140 others, five draws --> its mean accuracy
"""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bench.harness.bench import Bench
from bench.harness.data import SIZE, EvenSelection
from bench.harness.measure import Compared, Measurement, Samples, Timing, Workload
from bench.harness.timed_process import process_workload
from bench.harness.usual_run import TRAINED
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import all_rankings, sample_rankings
from fastdps.evaluation.evaluate import evaluate
from fastdps.evaluation.options import EvaluationOptions
from fastdps.loading.loader import open_shards
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.deadleaves import DeadLeaves
from fastdps.packing.sources.folder import Folder

#: Images, and the share that is held out by image; if quick.
IMAGES, HOLDOUT, QUICK_IMAGES = 700, 0.2, 100
#: Side in pixels of images for crops of `SIZE`.
LARGE_SIZE = 96
#: Epochs of the usual way.
USUAL_EPOCHS, QUICK_USUAL_EPOCHS = 10, 1
USUAL = "the usual way, 1 context, whole process"
#: Set to any text, it also measures variants that take minutes.
LONG_VARIABLE = "FASTDPS_BENCH_LONG"
ROUNDS = 3


@dataclass(frozen=True)
class AccuracyCase:
    """One row.

    Attributes:
        what: Its name.
        options: The options of `fastdps train`.
        contexts: Number of contexts that are trained; the time is extrapolated to all of them.
        is_long: It takes minutes.
        packed_size: The side in pixels at which its images are packed.
        headline: Whether the row goes into the README.
    """

    what: str
    options: tuple[str, ...] = ()
    contexts: int = 720
    is_long: bool = False
    packed_size: int = SIZE
    headline: bool = True

    @property
    def factor(self) -> float:
        """The factor by which the time is extrapolated."""
        return len(all_rankings(NAMES)) / self.contexts


CASES = (
    AccuracyCase("lin, 720 contexts, to 0.79"),
    AccuracyCase("lin, 720 contexts, new draws in each epoch", ("--draws-kept", "0"), headline=False),
    AccuracyCase(
        "tune, 720 contexts, to 0.90, extrapolated from 3",
        ("--variant", "tune", "--contexts", "3", "--epochs", "8"),
        contexts=3,
        is_long=True,
    ),
    AccuracyCase(
        "shared, 720 contexts, to 0.93",
        ("--variant", "shared", "--interpolation", "bilinear", "--keep", "0", "--crop-size", str(SIZE)),
        is_long=True,
        packed_size=LARGE_SIZE,
    ),
)


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure in turns. Long cases run once, after the others."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        sets = {size: _pack(bench, place / str(size), size) for size in (SIZE, LARGE_SIZE)}
        ranking = sample_rankings(1, NAMES, seed=0)[0]
        epochs = QUICK_USUAL_EPOCHS if bench.quick else USUAL_EPOCHS
        usual = [str(_png_files(sets[SIZE] / "train", place / "files")), str(sets[SIZE] / "val"), ",".join(ranking)]
        usual = ["-m", "bench.harness.usual_run", *usual, str(epochs), str(place / "usual.json")]
        quick = {case: _training(case, sets, place) for case in CASES if not case.is_long}
        rounds = Timing(1 if bench.quick else ROUNDS, bench.timing.seconds, bench.device)
        works = {case.what: work for case, work in quick.items()} | {USUAL: process_workload(usual, until=TRAINED)}
        seconds = _seconds(rounds, works)
        usual_accuracy = float(json.loads((place / "usual.json").read_text(encoding="utf-8")))
        notes = {"usual_accuracy_share": usual_accuracy, "usual_epochs": epochs}
        yield Measurement("accuracy", USUAL, seconds[USUAL], unit="s", notes={"accuracy_share": usual_accuracy})
        for case in quick:
            yield _row(case, seconds[case.what], seconds[USUAL], sets, place, notes)
        if not os.environ.get(LONG_VARIABLE):
            return
        once = Timing(1, bench.timing.seconds, bench.device)
        for case in CASES:
            if case.is_long:
                taken = _seconds(once, {case.what: _training(case, sets, place)})[case.what]
                yield _row(case, taken, seconds[USUAL][:1], sets, place, notes)


def _seconds(timing: Timing, works: Mapping[str, Workload]) -> dict[str, Samples]:
    return {name: tuple(1 / rate for rate in rates) for name, rates in timing.single_rates(works).items()}


def _training(case: AccuracyCase, sets: Mapping[int, Path], place: Path) -> Workload:
    shards = sets[case.packed_size] / "train"
    out = ["--out", str(_run_of(case, place)), "--overwrite"]
    return process_workload(["-m", "fastdps", "train", "--shards", str(shards), *out, *case.options])


def _run_of(case: AccuracyCase, place: Path) -> Path:
    return place / f"run-{CASES.index(case)}"


def _row(
    case: AccuracyCase,
    seconds: Samples,
    usual: Samples,
    sets: Mapping[int, Path],
    place: Path,
    notes: Mapping[str, float],
) -> Measurement:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        options = EvaluationOptions(size=SIZE)
        scores = evaluate(_run_of(case, place), shards=sets[case.packed_size] / "val", options=options)
    accuracies = [context.adapted_accuracy for context in scores.contexts]
    return Measurement(
        "accuracy",
        case.what,
        tuple(case.factor * taken for taken in seconds),
        unit="s",
        usual=Compared(USUAL, usual),
        notes={
            "accuracy_share": math.fsum(accuracies) / len(accuracies),
            "worst_accuracy_share": min(accuracies),
            "measured_contexts": case.contexts,
            **notes,
        },
        headline=case.headline,
    )


def _pack(bench: Bench, out: Path, size: int) -> Path:
    """Pack the images, some of them held out; the same ones at every size."""
    count = QUICK_IMAGES if bench.quick else min(bench.data.images, IMAGES)
    photos = bench.data.photos
    source = EvenSelection(Folder(photos), count) if photos else DeadLeaves(count, size, seed=0)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        pack(source, out, PackOptions(size=size, encoding="raw", holdout=HOLDOUT), workers=1)
    return out


def _png_files(shards: Path, out: Path) -> Path:
    """Write the images of a set as PNG files, which the usual way reads."""
    out.mkdir()
    for batch in open_shards(shards, batch_size=100, seed=None).epoch(0):
        for number, image in zip(batch.ids.tolist(), batch.images.numpy(), strict=True):
            Image.fromarray(image).save(out / f"{number:06d}.png")
    return out
