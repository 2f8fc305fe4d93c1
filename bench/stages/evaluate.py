"""Scoring end to end, as `fastdps evaluate` does it for all contexts. Limit: its slowest part."""

from __future__ import annotations

from collections.abc import Iterator

from bench.harness.bench import Bench
from bench.harness.measure import Measurement, PartRates, Workload
from bench.harness.parts import StepParts, score_work
from fastdps.contexts.distortions import NAMES
from fastdps.contexts.rankings import all_rankings
from fastdps.evaluation.options import DRAWS

#: The duration of a sample of scoring, relative to one of a part: scoring has a start-up.
LONGER = 5


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure one row: images per second, each with the default number of draws."""
    parts = StepParts(bench, bench.data.small("raw"))
    works: dict[str, Workload] = {
        "load": parts.load(),
        "distort": parts.distort(),
        "features": parts.features(),
        "distances": parts.distances(),
    }
    cases = {"score": score_work(parts), **works}
    rates = bench.timing.rates(cases, seconds={"score": bench.timing.seconds * LONGER})
    draws = {name: 1 if name == "load" else DRAWS for name in works}
    part_rates = PartRates(
        {name: tuple(rate / draws[name] for rate in rates[name]) for name in works}, shared_cores=not bench.on_gpu
    )
    yield Measurement(
        "evaluate",
        f"{len(all_rankings(NAMES))} contexts, {DRAWS} draws an image",
        rates["score"],
        limit=part_rates.slowest,
        parts_s=part_rates.seconds,
        notes=part_rates.notes(rates["score"]),
    )
