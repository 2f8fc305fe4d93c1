"""Scoring end to end, as `fastdps evaluate` does it for all contexts, against its slowest part alone."""

from __future__ import annotations

from collections.abc import Iterator

from bench.harness.bench import Bench
from bench.harness.measure import Measurement, PartRates, Workload
from bench.harness.parts import StepParts, score_work
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import all_rankings
from fastdps.evaluation.options import DRAWS

#: A sample of scoring takes this many times as long as one of a part: it has a start.
LONGER = 5


def run(bench: Bench) -> Iterator[Measurement]:
    """One row: images per second, each with as many draws of its distortions as by default."""
    parts = StepParts(bench, bench.data.small("raw"))
    alone: dict[str, Workload] = {
        "load": parts.load(),
        "distort": parts.distort(),
        "features": parts.features(),
        "distances": parts.distances(),
    }
    cases = {"score": score_work(parts), **alone}
    rates = bench.timing.rates(cases, seconds={"score": bench.timing.seconds * LONGER})
    draws = {name: 1 if name == "load" else DRAWS for name in alone}
    parts_of = PartRates(
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
