"""A simulation of staging (downloading shards) for a large set on many nodes. `staging_tables` prints its results.

    manifest --epoch order, parts, segments, quota: the code of fastdps--> the earliest start of each download
    shard = pieces, each latency + bytes / rate of a stream, some of which fail and are retried --> the time of arrival
    step k of all processes = step k-1 + the time of a step, or the time when the last process has its shards

Only time is simulated. Streams do not slow each other down: the bandwidth that nodes and store need is a result (see
`bench.analyse.capacity`).
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
#: The maximum number of simulated steps of an epoch.
MOST_STEPS = 500
#: The set, the epochs and the batch size for measuring shuffle quality.
SHUFFLED_SHARDS, SHUFFLED_EPOCHS, SHUFFLED_BATCH = 200, 20, 256


@dataclass(frozen=True)
class StoreModel:
    """A model of a store, with log-normal latencies and stream rates. Some requests fail.

    A request fails at a uniformly random point of its time, and is retried after the same pauses as in fastdps.

    Attributes:
        latency_s: The median latency of a request.
        latency_sigma: The sigma of its logarithm.
        stream_bytes_per_s: The median rate of a stream.
        stream_sigma: The sigma of its logarithm.
        failing: The fraction of requests that fail.
    """

    latency_s: float = 0.05
    latency_sigma: float = 0.8
    stream_bytes_per_s: float = 100e6
    stream_sigma: float = 0.3
    failing: float = 0.1

    def shard_s(self, size: int, draw: np.random.Generator) -> float:
        """Draw the seconds of downloading a shard of `size` bytes."""
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
    """Return a manifest of raw 64 px images, with `shard_images` in each shard but the last."""
    sizes = [shard_images] * (images // shard_images) + [images % shard_images] * bool(images % shard_images)
    digest = "0" * 64
    shards = tuple(
        Shard(f"shard-{number:06d}.tar", n, n * IMAGE_BYTES + 10_240, digest) for number, n in enumerate(sizes)
    )
    return Manifest("images", {"image": "bin"}, "raw", (64, 64), images, {"name": "made up"}, shards)


class SimulatedProcess:
    """The downloads of one process in an epoch.

    Args:
        manifest: The manifest of the set.
        visits: The shards that the process reads, in order.
        quota: The bytes that the process may hold at a time.
        batch_size: The images of a batch.
        most_bytes: The maximum bytes of a segment.

    Attributes:
        shards: The shard of each visit, divided at the ends of segments.
        samples: The number of samples of each visit.
        begun_after: The number of samples that must be delivered before the download for each visit starts.
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
        self._arrival_s: list[float] = []
        self._last_arrival_s = 0.0
        self._segment = 0

    def ready_s(
        self, sample: int, delivered_s: Callable[[int], float], streams: list[float], download_s: Callable[[int], float]
    ) -> float:
        """Return the time when the segment of a sample has arrived.

        Args:
            sample: The number of the sample in the process.
            delivered_s: Returns the time when a number of samples has been delivered.
            streams: The times from which each stream is free, as a heap; updated.
            download_s: Returns the seconds of downloading a number of bytes.
        """
        while self._segment + 1 < len(self._segment_starts) and self._segment_starts[self._segment + 1] <= sample:
            self._segment += 1
        for visit in range(len(self._arrival_s), self._segment_ends[self._segment]):
            shard = self.shards[visit]
            if visit > 0 and self.shards[visit - 1].name == shard.name:  # still held for the previous visit
                arrival_s = max(delivered_s(self.begun_after[visit]), self._arrival_s[-1])
            else:
                arrival_s = max(delivered_s(self.begun_after[visit]), streams[0]) + download_s(shard.bytes)
                heapq.heapreplace(streams, arrival_s)
            self._arrival_s.append(arrival_s)
            self._last_arrival_s = max(self._last_arrival_s, arrival_s)
        return self._last_arrival_s


def begun_after(shards: Sequence[Shard], samples: Sequence[int], quota: int) -> list[int]:
    """Return, for each visit, the number of delivered samples after which its download starts.

    It follows the window of `fastdps.shards.cache`.

    Args:
        shards: The shard of each visit.
        samples: The number of samples of each visit.
        quota: The bytes that may be held at a time.

    Returns:
        The numbers of samples.
    """
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
    """The result of a simulation.

    Attributes:
        images_per_s: The rate of all processes from the first batch on.
        first_batch_s: The seconds until the first batch.
    """

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
    """Simulate the first `MOST_STEPS` steps of an epoch, with processes that synchronize in every step.

    Args:
        manifest: The manifest of the set.
        processes: The number of processes.
        service: The model of the store.
        quota: The bytes that each process may hold at a time.
        streams: The concurrent downloads of each process.
        batch_size: The images of a step of each process.
        device_images_per_s: The rate of each device.
        seed: The seed of the epoch order and of the store.
    """
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

    def download_s(size: int) -> float:
        return service.shard_s(size, draw)

    step_s, now_s = batch_size / device_images_per_s, 0.0
    for step in range(steps):
        arrival_s = (own.ready_s(step * batch_size, delivered_s, free, download_s) for own, free in every)
        now_s = max(now_s, *arrival_s) if processes > 1 else max(now_s, next(arrival_s))
        begun_s.append(now_s)
        now_s += step_s
    return SimulatedEpoch(steps * batch_size * processes / (now_s - begun_s[0]), begun_s[0])


@dataclass(frozen=True)
class ShardDivision:
    """The load of an epoch on storage.

    Attributes:
        shards: The number of shards of the set.
        shards_per_process: The mean number of shards that a process downloads.
        bytes_per_node: The mean number of bytes that a node downloads.
        amplification: The bytes that all nodes download, relative to the bytes of the set.
    """

    shards: int
    shards_per_process: float
    bytes_per_node: float
    amplification: float


def divide_shards(manifest: Manifest, nodes: int) -> ShardDivision:
    """Divide the shards of an epoch over the processes of `nodes` nodes. Each process downloads the shards it reads."""
    order = EpochOrder([shard.samples for shard in manifest.shards], seed=0, epoch=0, shuffle=True)
    processes = nodes * PER_NODE
    visits = [v.shard for rank in range(processes) for v in order.visits(part_of(manifest.samples, rank, processes))]
    downloaded = sum(manifest.shards[shard].bytes for shard in visits)
    return ShardDivision(
        len(manifest.shards),
        len(visits) / processes,
        downloaded / nodes,
        downloaded / sum(shard.bytes for shard in manifest.shards),
    )


@dataclass(frozen=True)
class Mixing:
    """The shuffle quality of batches.

    Attributes:
        shards: The mean number of shards in a batch of one process.
        variance_ratio: The variance of batch means, relative to a full shuffle.
        pairs_again: The probability that two samples of a batch share a batch in the next epoch.
        pairs_again_full: The same probability with a full shuffle.
    """

    shards: float
    variance_ratio: float
    pairs_again: float
    pairs_again_full: float


def mix(shard_images: int, labels: NDArray[np.float64], *, epochs: int = SHUFFLED_EPOCHS) -> Mixing:
    """Measure the shuffle quality of the batches of one process.

    Args:
        shard_images: The images of a shard.
        labels: Any value of each sample (n,), in packed order.
        epochs: The number of epochs.

    Returns:
        The shuffle quality.
    """
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
