"""`python -m bench staging`: what staging a large set on many nodes would take, simulated.

    manifest --order of the epoch, parts, segments, quota: all the product's--> what may come when
    shard = pieces, each latency + bytes / rate of a stream, some failing and asked for again --> when it is here
    step k of all processes = step k-1 + the time of a step, or when the last of them has its shards

Only time is simulated. Streams do not slow each other down: what nodes and store have to give is a result, see `plan`.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastdps.loading.order import EpochOrder, Visit, part_of
from fastdps.loading.segments import places_within
from fastdps.loading.staged import segment_bytes
from fastdps.shards.cache import STREAMS
from fastdps.shards.format import Manifest, Shard
from fastdps.shards.storage import FIRST_PAUSE_S, LONGEST_PAUSE_S, PIECE_BYTES

NODES = (1, 8, 64, 512)
PER_NODE = 8
IMAGE_BYTES = 12_800
#: Steps of an epoch that are simulated, of more.
MOST_STEPS = 500
#: Shuffle quality is taken from a set of so many shards.
SHUFFLED_SHARDS, SHUFFLED_EPOCHS, SHUFFLED_BATCH = 200, 20, 256


@dataclass(frozen=True)
class StoreModel:
    """How a store answers: log-normal latencies and rates of a stream, by median and sigma; some requests fail.

    What fails does so anywhere in its time, and is asked for again after the product's own pauses.
    """

    latency_s: float = 0.05
    latency_sigma: float = 0.8
    stream_bytes_per_s: float = 100e6
    stream_sigma: float = 0.3
    failing: float = 0.1

    def shard_s(self, size: int, draw: np.random.Generator) -> float:
        """Seconds until a shard of so many bytes is here."""
        sizes = np.full(-(-size // PIECE_BYTES), PIECE_BYTES)
        sizes[-1] = size - PIECE_BYTES * (len(sizes) - 1)
        failures = draw.geometric(1 - self.failing, len(sizes)) - 1
        taken_s = float(self._requests_s(sizes, draw).sum())
        for nbytes, failed in zip(sizes[failures > 0], failures[failures > 0], strict=True):
            failed_s = self._requests_s(np.full(failed, nbytes), draw) * draw.random(failed)
            pauses_s = np.minimum(FIRST_PAUSE_S * 2.0 ** np.arange(failed), LONGEST_PAUSE_S) * draw.uniform(
                0.5, 1, failed
            )
            taken_s += float(failed_s.sum() + pauses_s.sum())
        return taken_s

    def _requests_s(self, sizes: NDArray[np.int64], draw: np.random.Generator) -> NDArray[np.float64]:
        latency_s = self.latency_s * draw.lognormal(0, self.latency_sigma, len(sizes))
        return latency_s + sizes / (self.stream_bytes_per_s * draw.lognormal(0, self.stream_sigma, len(sizes)))


def made_up(images: int, shard_images: int) -> Manifest:
    """A manifest of raw 64 px images."""
    sizes = [shard_images] * (images // shard_images) + [images % shard_images] * bool(images % shard_images)
    digest = "0" * 64
    shards = tuple(
        Shard(f"shard-{number:06d}.tar", n, n * IMAGE_BYTES + 10_240, digest) for number, n in enumerate(sizes)
    )
    return Manifest("images", {"image": "bin"}, "raw", (64, 64), images, {"name": "made up"}, shards)


class SimulatedProcess:
    """One process in an epoch: which shards come when. `quota` is the bytes that it may hold at a time.

    `begun_after[j]` is the number of samples that have to be delivered before visit j is begun.
    """

    def __init__(
        self, manifest: Manifest, visits: Sequence[Visit], *, quota: int, batch_size: int, most_bytes: int
    ) -> None:
        places = list(places_within(visits, manifest, start=0, batch_size=batch_size, most_bytes=most_bytes))
        ends = np.cumsum([visit.stop - visit.start for visit in visits]).tolist()
        shards, samples = [], []
        self._segment_starts, self._segment_ends = [], []  # samples; visits
        at = 0
        for place in places:
            self._segment_starts.append(place.start)
            start = place.start
            while start < place.stop:
                stop = min(place.stop, ends[at])
                shards.append(manifest.shards[visits[at].shard])
                samples.append(stop - start)
                at += stop == ends[at]
                start = stop
            self._segment_ends.append(len(shards))
        self.shards, self.samples = shards, samples
        self.begun_after = begun_after(shards, samples, quota)
        self._here_s: list[float] = []
        self._all_here_s = 0.0
        self._segment = 0

    def ready_s(
        self, sample: int, delivered_s: Callable[[int], float], streams: list[float], bring_s: Callable[[int], float]
    ) -> float:
        """When the segment of a sample is here. `streams` are the times from which on each is free, a heap."""
        while self._segment + 1 < len(self._segment_starts) and self._segment_starts[self._segment + 1] <= sample:
            self._segment += 1
        for visit in range(len(self._here_s), self._segment_ends[self._segment]):
            shard = self.shards[visit]
            if visit > 0 and self.shards[visit - 1].name == shard.name:  # held for the visit before
                here_s = max(delivered_s(self.begun_after[visit]), self._here_s[-1])
            else:
                here_s = max(delivered_s(self.begun_after[visit]), streams[0]) + bring_s(shard.bytes)
                heapq.heapreplace(streams, here_s)
            self._here_s.append(here_s)
            self._all_here_s = max(self._all_here_s, here_s)
        return self._all_here_s


def begun_after(shards: Sequence[Shard], samples: Sequence[int], quota: int) -> list[int]:
    """For each visit the samples that are delivered before its shard is begun, as `shards.cache.Ahead` has it."""
    held: deque[tuple[Shard, int]] = deque()
    holders: Counter[str] = Counter()
    nbytes = delivered = 0
    found = []
    for shard, own in zip(shards, samples, strict=True):
        while nbytes + (0 if holders[shard.name] else shard.bytes) > quota:
            oldest, read = held.popleft()
            delivered += read
            holders[oldest.name] -= 1
            nbytes -= 0 if holders[oldest.name] else oldest.bytes
        nbytes += 0 if holders[shard.name] else shard.bytes
        holders[shard.name] += 1
        held.append((shard, own))
        found.append(delivered)
    return found


@dataclass(frozen=True)
class SimulatedEpoch:
    """What came out: images/s of all processes once the first batch was there, and the seconds until then."""

    images_per_s: float
    first_batch_s: float


def simulate(
    manifest: Manifest,
    processes: int,
    service: StoreModel,
    *,
    quota: int,
    streams: int = STREAMS,
    batch_size: int,
    device_images_per_s: float,
    seed: int = 0,
) -> SimulatedEpoch:
    """An epoch, or the first `MOST_STEPS` of it, of processes that wait for each other in every step."""
    draw = np.random.default_rng(seed)
    order = EpochOrder([shard.samples for shard in manifest.shards], seed=seed, epoch=0, shuffle=True)
    steps = min(MOST_STEPS, manifest.samples // processes // batch_size)
    most_bytes = segment_bytes(manifest, quota=quota, batch_size=batch_size)
    every = []
    for rank in range(processes):
        part = part_of(manifest.samples, rank, processes)
        read = list(order.visits(part[: (steps + 1) * batch_size + int(quota // IMAGE_BYTES)]))
        own = SimulatedProcess(manifest, read, quota=quota, batch_size=batch_size, most_bytes=most_bytes)
        every.append((own, [0.0] * streams))
    begun_s: list[float] = []

    def delivered_s(samples: int) -> float:
        return begun_s[-(-samples // batch_size) - 1] if samples else 0.0

    def bring_s(size: int) -> float:
        return service.shard_s(size, draw)

    step_s, now_s = batch_size / device_images_per_s, 0.0
    for step in range(steps):
        here_s = (own.ready_s(step * batch_size, delivered_s, free, bring_s) for own, free in every)
        now_s = max(now_s, *here_s) if processes > 1 else max(now_s, next(here_s))
        begun_s.append(now_s)
        now_s += step_s
    return SimulatedEpoch(steps * batch_size * processes / (now_s - begun_s[0]), begun_s[0])


@dataclass(frozen=True)
class ShardDivision:
    """What an epoch asks of storage. `amplification` is what all nodes bring over what there is."""

    shards: int
    shards_per_process: float
    bytes_per_node: float
    amplification: float


def divide_shards(manifest: Manifest, nodes: int) -> ShardDivision:
    """How the shards fall to the processes of so many nodes; a shard that two processes read is brought by each."""
    order = EpochOrder([shard.samples for shard in manifest.shards], seed=0, epoch=0, shuffle=True)
    processes = nodes * PER_NODE
    visits = [v.shard for rank in range(processes) for v in order.visits(part_of(manifest.samples, rank, processes))]
    brought = sum(manifest.shards[shard].bytes for shard in visits)
    return ShardDivision(
        len(manifest.shards),
        len(visits) / processes,
        brought / nodes,
        brought / sum(shard.bytes for shard in manifest.shards),
    )


@dataclass(frozen=True)
class Mixing:
    """How well batches are mixed. `variance_ratio` is the variance of their means over that of a full shuffle.

    `shards` are those of a batch of one process; `pairs_again` is the chance that two samples of a batch are together
    in one again in the next epoch, `pairs_again_full` that with a full shuffle.
    """

    shards: float
    variance_ratio: float
    pairs_again: float
    pairs_again_full: float


def mix(shard_images: int, labels: NDArray[np.float64], *, epochs: int = SHUFFLED_EPOCHS) -> Mixing:
    """Batches of one process over some epochs; `labels` (n,) are any number of each sample, in packed order."""
    n, batch = len(labels), SHUFFLED_BATCH
    sizes = [shard_images] * (n // shard_images)
    starts = np.arange(len(sizes)) * shard_images
    whole = len(sizes) * shard_images // batch * batch
    draw = np.random.default_rng(0)
    means, full_means, shards = [], [], []
    for epoch in range(epochs):
        runs = list(EpochOrder(sizes, seed=0, epoch=epoch, shuffle=True).row_runs(range(whole)))
        order = np.concatenate([starts[run.shard] + run.rows for run in runs])
        means.append(labels[order].reshape(-1, batch).mean(1))
        batches = (order // shard_images).reshape(-1, batch)
        shards.append(1 + (np.diff(batches, axis=1) != 0).sum(1).mean())
        full_means.append(labels[draw.permutation(n)[:whole]].reshape(-1, batch).mean(1))
    return Mixing(
        float(np.mean(shards)),
        float(np.var(np.concatenate(means)) / np.var(np.concatenate(full_means))),
        (batch - 1) / (shard_images - 1),
        (batch - 1) / (n - 1),
    )
