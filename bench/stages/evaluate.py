"""Scoring end to end, as `fastdps evaluate` does it for all contexts, against its slowest part alone."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import redirect_stderr

from bench.harness.bench import Bench
from bench.harness.first_steps import FirstSteps
from bench.harness.measure import Measurement, Timed, Work
from bench.harness.parts import Parts
from bench.harness.whole import Parts as PartsOfWhole
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import all_rankings
from fastdps.evaluation.evaluate import DRAWS
from fastdps.evaluation.tally import tally_choices
from fastdps.metric.perceptual import PerceptualMetric
from fastdps.runtime.processes import join_processes

#: A sample of scoring takes this many times as long as one of a part: it has a start.
LONGER = 5


def run(bench: Bench) -> Iterator[Measurement]:
    """One row: images per second, each with as many draws of its distortions as by default."""
    parts = Parts(bench, bench.data.small("raw"))
    alone: dict[str, Work] = {
        "load": parts.load(),
        "distort": parts.distort(),
        "features": parts.features(),
        "distances": parts.distances(),
    }
    cases = {"score": score_work(parts), **alone}
    rates = bench.timing.rates(cases, seconds={"score": bench.timing.seconds * LONGER})
    draws = {name: 1 if name == "load" else DRAWS for name in alone}
    parts_of = PartsOfWhole(
        {name: tuple(rate / draws[name] for rate in rates[name]) for name in alone}, shared_cores=not bench.on_gpu
    )
    yield Measurement(
        "evaluate",
        f"{len(all_rankings(NAMES))} contexts, {DRAWS} draws an image",
        rates["score"],
        limit=parts_of.slowest,
        parts_s=parts_of.seconds,
        notes=parts_of.notes(rates["score"]),
    )


def score_work(parts: Parts) -> Work:
    """Work whose unit is one batch: scoring a metric of all contexts and the unadapted one."""
    device = parts.bench.device
    metric = PerceptualMetric(parts.backbone, rankings=all_rankings(NAMES)).to(device)
    baseline = PerceptualMetric(parts.backbone).to(device)
    accelerator = join_processes()

    def score(amount: int) -> Timed:
        epochs = math.ceil(amount / parts.loader.steps)
        loader = FirstSteps(parts.loader, math.ceil(amount / epochs), parts.batch_size)
        with redirect_stderr(io.StringIO()):
            for _ in range(epochs):  # each ends with a read from the device
                tally_choices(baseline, [metric], loader.as_loader(), accelerator, draws=DRAWS)
        return Timed(epochs * loader.samples, loader.elapsed_s())

    return score
