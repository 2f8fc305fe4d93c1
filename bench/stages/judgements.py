"""Adapting to judgements that repeat their images. Baseline: a set of triplets, with features in each epoch."""

from __future__ import annotations

import io
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.harness.bench import Bench
from bench.harness.measure import Compared, Measurement, Timed
from fastdps.loading.loader import open_shards
from fastdps.packing.options import PackOptions
from fastdps.packing.pack import pack
from fastdps.packing.sources.registry import open_source
from fastdps.run_directory import RunDirectory
from fastdps.training.run import train

#: Images, and judgements of them: as many per image as in the material set of Lagunas et al. 2019.
IMAGES, TRIPLETS = 100, 20_000
QUICK_TRIPLETS = 2_000
#: Triplets of the baseline, which is slower.
PACKED_TRIPLETS, QUICK_PACKED_TRIPLETS = 400, 100
USUAL = "a set of triplets, features in each epoch"


@dataclass(frozen=True)
class JudgedWorkload:
    """A workload: one training on judgements. Its rate counts all judgements in all passes, from shards to heads.

    Attributes:
        shards: The set.
        run: The run directory.
        settings: The settings of the training.
        triplets: Number of judgements of the set.
        seconds: The seconds of each training.
    """

    shards: Path
    run: RunDirectory
    settings: dict[str, Any]
    triplets: int
    seconds: list[float]

    def __call__(self, amount: int) -> Timed:
        """Train `amount` times."""
        items, seconds = 0.0, 0.0
        for _ in range(amount):
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                train(self.shards, self.run.path, overwrite=True, **self.settings)
            end = self.run.read_log()[-1]
            # A fit reads all judgements in each pass; the baseline has one epoch.
            done = end["triplets"] * end["passes"] if "passes" in end else self.triplets
            taken_s = end.get("elapsed_s", done / end["triplets_per_s"])
            self.seconds.append(taken_s)
            items, seconds = items + done, seconds + taken_s
        return Timed(items, seconds)


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure both ways in turns."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        images = _write_images(bench, place)
        count, packed = (QUICK_TRIPLETS, QUICK_PACKED_TRIPLETS) if bench.quick else (TRIPLETS, PACKED_TRIPLETS)
        options = PackOptions(size=64)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            pack(open_source("judgements", _write_rows(place / "judged.csv", images, count)), place / "set", options)
            pack(open_source("triplets", _write_rows(place / "few.csv", images, packed)), place / "triplets", options)
        judged = JudgedWorkload(place / "set/train", RunDirectory(place / "judged"), {}, count, [])
        usual = JudgedWorkload(
            place / "triplets/train", RunDirectory(place / "usual"), {"config": "lpips", "epochs": 1}, packed, []
        )
        rates = bench.timing.rates({"judged": judged, USUAL: usual})
    yield Measurement(
        "judgements",
        f"{count:,} judgements of {len(images)} images, from shards to heads",
        rates["judged"],
        unit="triplets/s",
        usual=Compared(USUAL, rates[USUAL]),
        notes={"seconds_to_heads_s": statistics.median(judged.seconds)},
    )


def _write_images(bench: Bench, place: Path) -> list[str]:
    """Write distinct images as PNG files, and return their names."""
    with closing(open_shards(bench.data.small("raw", IMAGES), batch_size=IMAGES).epoch(0)) as batches:
        pixels = next(batches).images.numpy()
    names = [f"{number:03d}.png" for number in range(len(pixels))]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(place / name)
    return names


def _write_rows(path: Path, images: Sequence[str], count: int) -> Path:
    """Write a CSV file of judgements by the mean colour, a quarter of them at random."""
    rng = np.random.default_rng(0)
    colours = np.array([np.asarray(Image.open(path.parent / name), float).mean(axis=(0, 1)) for name in images])
    lines = ["ref,p0,p1,judge"]
    for _ in range(count):
        ref, a, b = rng.choice(len(images), 3, replace=False)
        is_b = np.linalg.norm(colours[ref] - colours[b]) < np.linalg.norm(colours[ref] - colours[a])
        judge = int(rng.integers(2) if rng.random() < 0.25 else is_b)
        lines.append(f"{images[ref]},{images[a]},{images[b]},{judge}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
