"""Measurement: compared cases run in turns, and each turn gives a sample.

    cases A, B --warm up, find the work that takes `seconds`--> A B A B A B ... --> a sample per case and round

Compared samples come from the same round, so that a temporary slowdown of the machine affects both cases.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import torch

Unit = Literal["images/s", "triplets/s", "s", "MiB"]
#: Units in which less is better.
COSTS: frozenset[str] = frozenset({"s", "MiB"})
Samples = tuple[float, ...]


class Timed(NamedTuple):
    """The result of a workload that measures its own time."""

    items: float
    seconds: float


#: Does an amount of work in its own units (batches, epochs), and returns the number of items (images, operations) done.
Workload = Callable[[int], float | Timed]


class Spread(NamedTuple):
    """The median and the quartiles of samples."""

    median: float
    low: float
    high: float


def spread(samples: Sequence[float]) -> Spread:
    """Return the median and the quartiles; all are equal for a single sample. Raises `ValueError` without samples."""
    if not samples:
        raise ValueError("no samples")
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, low, high)


@dataclass(frozen=True)
class Timing:
    """The durations of measurements.

    Attributes:
        rounds: The number of samples of each case.
        seconds: The approximate duration of a sample.
        device: The device to synchronize before reading the clock.
    """

    rounds: int
    seconds: float
    device: torch.device

    def rates(self, cases: Mapping[str, Workload], *, seconds: Mapping[str, float] | None = None) -> dict[str, Samples]:
        """Measure the cases in turns, after a warm-up.

        Args:
            cases: The workloads by name.
            seconds: Durations of a sample for cases that need another one than `self.seconds`.

        Returns:
            The samples of each case in items per second, one per round.
        """
        own = seconds or {}
        amounts = {name: self._amount(work, own.get(name, self.seconds)) for name, work in cases.items()}
        return self._take_turns(cases, amounts)

    def single_rates(self, cases: Mapping[str, Workload]) -> dict[str, Samples]:
        """Measure as `rates` does, with one unit of work per sample and without a warm-up."""
        return self._take_turns(cases, dict.fromkeys(cases, 1))

    def _take_turns(self, cases: Mapping[str, Workload], amounts: Mapping[str, int]) -> dict[str, Samples]:
        samples: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(self.rounds):
            for name, work in cases.items():
                done = self._time(work, amounts[name])
                samples[name].append(done.items / done.seconds)
        return {name: tuple(rates) for name, rates in samples.items()}

    def _amount(self, work: Workload, seconds: float) -> int:
        """Warm up, and return the amount of work that takes `seconds`."""
        self._time(work, 1)
        amount = 1
        while (done := self._time(work, amount)).seconds < seconds / 4:
            amount = min(math.ceil(amount * seconds / max(done.seconds, 1e-6)), 16 * amount)
        return math.ceil(amount * seconds / done.seconds)

    def _time(self, work: Workload, amount: int) -> Timed:
        self._synchronize()
        started_s = time.perf_counter()
        done = work(amount)
        self._synchronize()
        return done if isinstance(done, Timed) else Timed(done, time.perf_counter() - started_s)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            import torch  # imported here, so that commands that only read results start fast

            torch.cuda.synchronize(self.device)


def repeated(step: Callable[[], object], items: float) -> Workload:
    """Return a workload whose unit is one call of `step`, which processes `items` items."""

    def work(amount: int) -> float:
        for _ in range(amount):
            step()
        return amount * items

    return work


@dataclass(frozen=True)
class Compared:
    """A limit or baseline of a measurement.

    Attributes:
        what: Its description.
        samples: Its samples, in the unit and from the rounds of the measurement.
    """

    what: str
    samples: Samples


@dataclass(frozen=True)
class PartRates:
    """The rates of the parts that an end-to-end measurement consists of, each measured alone in the same rounds.

    Attributes:
        rates: Samples of the rate of each part in images/s, one per round, by the name of the part.
        shared_cores: Whether all parts run on the same cores, so that none runs while another does.
    """

    rates: Mapping[str, Samples]
    shared_cores: bool

    @property
    def slowest(self) -> Compared:
        """The slowest part: the limit if all others took no time, or ran concurrently."""
        name = min(self.rates, key=lambda name: spread(self.rates[name]).median)
        return Compared(f"{name} alone", self.rates[name])

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds per image of each part."""
        return {name: 1 / spread(samples).median for name, samples in self.rates.items()}

    @property
    def sums_s(self) -> list[float]:
        """The seconds per image of all parts one after another, per round; on a GPU, without loading."""
        counted = [samples for name, samples in self.rates.items() if self.shared_cores or name != "load"]
        return [sum(1 / rate for rate in round_rates) for round_rates in zip(*counted, strict=True)]

    def notes(self, total: Samples) -> dict[str, float]:
        """Return the sum of the parts, and the share of the corresponding rate that the samples `total` reach."""
        sums_s = self.sums_s
        shares = [rate * sum_s for rate, sum_s in zip(total, sums_s, strict=True)]
        return {"parts_sum_s": statistics.median(sums_s), "parts_sum_share": statistics.median(shares)}


@dataclass(frozen=True)
class Measurement:
    """One row of the results.

    Attributes:
        stage: The stage.
        what: The name of the row within the stage.
        samples: One value per round, in `unit`.
        unit: The unit: images/s, triplets/s, s or MiB.
        limit: The limit of the machine.
        usual: The baseline that most people use (see `reference`); in context-triplets/s if `triplets_per_image` is
            more than one.
        triplets_per_image: The context-triplets of an image.
        parts_s: The seconds per image of the parts of an end-to-end measurement, each measured alone.
        notes: Further numbers, whose names end in the unit.
        headline: Whether the row goes into the README.
    """

    stage: str
    what: str
    samples: Samples
    unit: Unit = "images/s"
    limit: Compared | None = None
    usual: Compared | None = None
    triplets_per_image: int = 1
    parts_s: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, float] = field(default_factory=dict)
    headline: bool = True

    @property
    def share(self) -> Spread | None:
        """The share of the limit that is reached, per round; 1 equals the limit, for rates and costs alike."""
        if self.limit is None:
            return None
        own, limit = self.samples, self.limit.samples
        if self.unit in COSTS:
            own, limit = limit, own
        return spread([a / b for a, b in zip(own, limit, strict=True)])

    @property
    def speedup(self) -> Spread | None:
        """The ratio of the triplets (or images) per second to those of the baseline, per round."""
        if self.usual is None:
            return None
        pairs = zip(self.samples, self.usual.samples, strict=True)
        return spread([own * self.triplets_per_image / usual for own, usual in pairs])

    @property
    def bottleneck(self) -> str | None:
        """The part that takes the most time."""
        return max(self.parts_s, key=lambda part: self.parts_s[part]) if self.parts_s else None

    def to_json(self) -> dict[str, Any]:
        """Return the row in the format of results files."""
        return {
            "stage": self.stage,
            "what": self.what,
            "unit": self.unit,
            **spread(self.samples)._asdict(),
            "samples": list(self.samples),
            "limit": _compared_json(self.limit),
            "share": _spread_json(self.share),
            "usual": _compared_json(self.usual),
            "speedup": _spread_json(self.speedup),
            "parts_s": dict(self.parts_s),
            "bottleneck": self.bottleneck,
            "notes": dict(self.notes),
            "headline": self.headline,
        }


def _compared_json(compared: Compared | None) -> dict[str, Any] | None:
    if compared is None:
        return None
    return {"what": compared.what, **spread(compared.samples)._asdict(), "samples": list(compared.samples)}


def _spread_json(of: Spread | None) -> dict[str, float] | None:
    return None if of is None else of._asdict()
