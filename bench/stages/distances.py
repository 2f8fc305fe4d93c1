"""Distances: from feature maps to moments. Limit: reading the maps once."""

from __future__ import annotations

from collections.abc import Iterator

from bench.harness.bench import Bench
from bench.harness.measure import Compared, Measurement, repeated
from bench.harness.parts import StepParts, frozen


def run(bench: Bench) -> Iterator[Measurement]:
    """Measure the default backbone and comparison of training."""
    parts = StepParts(bench, bench.data.small("raw"))

    def read_maps() -> None:
        with frozen(bench.device):
            for feature in parts.maps:
                feature.sum()

    rates = bench.timing.rates({"distances": parts.distances(), "read": repeated(read_maps, len(parts.batch))})
    map_bytes = sum(feature.nbytes for feature in parts.maps) / len(parts.batch)
    yield Measurement(
        "distances",
        f"{parts.backbone_name}, spatial",
        rates["distances"],
        limit=Compared("adding up the maps", rates["read"]),
        notes={"map_bytes_per_image": map_bytes},
    )
