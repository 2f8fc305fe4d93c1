"""Scoring end to end, as `fastdps evaluate` does it for all contexts, against its slowest part alone."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import redirect_stderr

from bench.bench import Bench
from bench.first_steps import FirstSteps
from bench.measure import Compared, Measurement, Timed, Work, spread
from bench.parts import Parts
from fastdps.contexts import all_rankings
from fastdps.distortions import NAMES
from fastdps.evaluate import DRAWS
from fastdps.metric import PerceptualMetric
from fastdps.processes import join_processes
from fastdps.tally import tally_choices

#: A sample of scoring takes this many times as long as one of a part: it has a start.
LONGER = 5


def run(bench: Bench) -> Iterator[Measurement]:
    """One row: images per second, each with as many draws of its distortions as by default."""
    parts = Parts(bench, bench.data.small("raw"))
    metric = PerceptualMetric(parts.backbone, rankings=all_rankings(NAMES)).to(bench.device)
    baseline = PerceptualMetric(parts.backbone).to(bench.device)
    accelerator = join_processes()

    def score(amount: int) -> Timed:
        epochs = math.ceil(amount / parts.loader.steps)
        loader = FirstSteps(parts.loader, math.ceil(amount / epochs), parts.batch_size)
        with redirect_stderr(io.StringIO()):
            for _ in range(epochs):  # each ends with a read from the device
                tally_choices(baseline, [metric], loader.as_loader(), accelerator, draws=DRAWS)
        return Timed(epochs * loader.samples, loader.elapsed_s())

    alone: dict[str, Work] = {
        "load": parts.load(),
        "distort": parts.distort(),
        "features": parts.features(),
        "distances": parts.distances(),
    }
    rates = bench.timing.rates({"score": score, **alone}, seconds={"score": bench.timing.seconds * LONGER})
    per_image = {name: tuple(rate / (1 if name == "load" else DRAWS) for rate in rates[name]) for name in alone}
    slowest = min(per_image, key=lambda name: spread(per_image[name]).median)
    yield Measurement(
        "evaluate",
        f"{len(metric.rankings)} contexts, {DRAWS} draws an image",
        rates["score"],
        limit=Compared(f"{slowest} alone", per_image[slowest]),
        parts_s={name: 1 / spread(samples).median for name, samples in per_image.items()},
    )
