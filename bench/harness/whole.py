"""An end-to-end rate against the parts it consists of, each measured alone in the same rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from bench.harness.measure import Compared, Samples, spread


@dataclass(frozen=True)
class Parts:
    """Samples of the parts' rates, round by round. With `shared_cores` none goes on while another does."""

    alone: Mapping[str, Samples]
    shared_cores: bool

    @property
    def slowest(self) -> Compared:
        """The limit if all others took no time, or went on beside it."""
        name = min(self.alone, key=lambda name: spread(self.alone[name]).median)
        return Compared(f"{name} alone", self.alone[name])

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds an image of each part."""
        return {name: 1 / spread(samples).median for name, samples in self.alone.items()}

    @property
    def sums_s(self) -> list[float]:
        """Seconds an image of all parts one after another, in each round; where a GPU computes, without loading."""
        counted = [samples for name, samples in self.alone.items() if self.shared_cores or name != "load"]
        return [sum(1 / rate for rate in rates) for rates in zip(*counted, strict=True)]

    def notes(self, whole: Samples) -> dict[str, float]:
        """The sum of the parts, and the share that a whole reaches of the rate it allows."""
        sums_s = self.sums_s
        shares = [rate * sum_s for rate, sum_s in zip(whole, sums_s, strict=True)]
        return {"parts_sum_s": statistics.median(sums_s), "parts_sum_share": statistics.median(shares)}
