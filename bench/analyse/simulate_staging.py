"""`python -m bench staging`: what staging a large set on many nodes would take, simulated.

    manifest --order of the epoch, parts, segments, quota: all the product's--> what may come when
    shard = pieces, each latency + bytes / rate of a stream, some failing and asked for again --> when it is here
    step k of all processes = step k-1 + the time of a step, or when the last of them has its shards

Only time is simulated. Streams do not slow each other down: what nodes and store have to give is a result, see `plan`.
"""

from __future__ import annotations

import argparse
import functools
import gc
import heapq
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdps.errors import ConfigError
from fastdps.loading.index_cache import KEPT_SAMPLES
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
class Service:
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


class Process:
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
        self.begun_after = _begun_after(shards, samples, quota)
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


def _begun_after(shards: Sequence[Shard], samples: Sequence[int], quota: int) -> list[int]:
    """For each visit the samples that are delivered before its shard is begun, as `shards.cache.Prefetch` has it."""
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
class Simulated:
    """What came out: images/s of all processes once the first batch was there, and the seconds until then."""

    images_per_s: float
    first_batch_s: float


def simulate(
    manifest: Manifest,
    processes: int,
    service: Service,
    *,
    quota: int,
    streams: int = STREAMS,
    batch_size: int,
    device_images_per_s: float,
    seed: int = 0,
) -> Simulated:
    """An epoch, or the first `MOST_STEPS` of it, of processes that wait for each other in every step."""
    draw = np.random.default_rng(seed)
    order = EpochOrder([shard.samples for shard in manifest.shards], seed=seed, epoch=0, shuffle=True)
    steps = min(MOST_STEPS, manifest.samples // processes // batch_size)
    most_bytes = segment_bytes(manifest, quota=quota, batch_size=batch_size)
    every = []
    for rank in range(processes):
        part = part_of(manifest.samples, rank, processes)
        read = list(order.visits(part[: (steps + 1) * batch_size + int(quota // IMAGE_BYTES)]))
        own = Process(manifest, read, quota=quota, batch_size=batch_size, most_bytes=most_bytes)
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
    return Simulated(steps * batch_size * processes / (now_s - begun_s[0]), begun_s[0])


@dataclass(frozen=True)
class Division:
    """What an epoch asks of storage. `amplification` is what all nodes bring over what there is."""

    shards: int
    shards_per_process: float
    bytes_per_node: float
    amplification: float


def divide(manifest: Manifest, nodes: int) -> Division:
    """How the shards fall to the processes of so many nodes; a shard that two processes read is brought by each."""
    order = EpochOrder([shard.samples for shard in manifest.shards], seed=0, epoch=0, shuffle=True)
    processes = nodes * PER_NODE
    visits = [v.shard for rank in range(processes) for v in order.visits(part_of(manifest.samples, rank, processes))]
    brought = sum(manifest.shards[shard].bytes for shard in visits)
    return Division(
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench staging`."""
    service = Service()
    parser.add_argument("--images", type=int, default=100_000_000, metavar="N", help="of the set (default 100 million)")
    parser.add_argument("--shard-images", type=int, default=5000, metavar="N", help="of a shard (default 5000)")
    parser.add_argument(
        "--rate", type=float, default=44_300, metavar="N", help="images/s of a device (default 44,300: docs/scaling.md)"
    )
    parser.add_argument("--batch-size", type=int, default=1024, metavar="N", help="images a step of each process")
    parser.add_argument(
        "--stream", type=float, default=service.stream_bytes_per_s / 1e6, metavar="MB/s", help="median of one stream"
    )
    parser.add_argument(
        "--latency", type=float, default=service.latency_s * 1e3, metavar="MS", help="median of a request"
    )
    parser.add_argument("--failing", type=float, default=service.failing, metavar="SHARE", help="of the requests")


def run(arguments: argparse.Namespace) -> None:
    """Simulate and show. Raises `ConfigError` for numbers that cannot be."""
    if min(arguments.shard_images, arguments.batch_size) < 1 or not 0 <= arguments.failing < 1:
        raise ConfigError("--shard-images and --batch-size have to be at least 1, --failing from 0 to below 1.")
    if min(arguments.rate, arguments.stream, arguments.latency) <= 0:
        raise ConfigError("--rate, --stream and --latency have to be above 0.")
    least = NODES[-1] * PER_NODE * arguments.batch_size
    if arguments.images < least:
        raise ConfigError(f"--images has to be at least {least:,}: a step of all processes of {NODES[-1]} nodes.")
    service = Service(arguments.latency / 1e3, stream_bytes_per_s=arguments.stream * 1e6, failing=arguments.failing)
    for table in (_divided, functools.partial(_simulated, service=service), _sizes, _mixed):
        print("\n".join(table(arguments)), end="\n\n", flush=True)


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    """Markdown."""
    return [_row(head), "|" + "---:|" * len(head), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _divided(arguments: argparse.Namespace) -> list[str]:
    manifest = made_up(arguments.images, arguments.shard_images)
    need = arguments.rate * IMAGE_BYTES / 1e9

    def rows() -> Iterator[Sequence[str]]:
        for nodes in NODES:
            part = divide(manifest, nodes)
            epoch_s = arguments.images / (nodes * PER_NODE * arguments.rate)
            yield (
                f"{nodes}",
                f"{part.shards_per_process:,.1f}",
                f"{part.bytes_per_node / 1e9:,.1f}",
                f"{part.amplification - 1:.2%}",
                f"{epoch_s:,.0f}",
                f"{PER_NODE * need:.2f}",
                f"{nodes * PER_NODE * need:,.0f}",
            )

    head = [
        "nodes",
        "shards a process",
        "GB a node and epoch",
        "brought twice",
        "epoch, s",
        "GB/s a node",
        "GB/s of all",
    ]
    return _table(head, rows())


def _simulated(arguments: argparse.Namespace, service: Service) -> list[str]:
    manifest = made_up(arguments.images, arguments.shard_images)
    size = manifest.shards[0].bytes

    def rows() -> Iterator[Sequence[str]]:
        for streams in (STREAMS // 2, STREAMS, 2 * STREAMS):
            for held in (4, 8, 16):
                cells = [f"{streams}", f"{held}", f"{PER_NODE * held * size / 1e9:.1f}"]
                for nodes in NODES:
                    found = simulate(
                        manifest,
                        nodes * PER_NODE,
                        service,
                        quota=held * size,
                        streams=streams,
                        batch_size=arguments.batch_size,
                        device_images_per_s=arguments.rate,
                    )
                    share = found.images_per_s / (arguments.rate * nodes * PER_NODE)
                    cells.append(f"{share:.0%}, {found.first_batch_s:.1f} s")
                yield cells

    head = ["streams", "shards of cache a process", "GB a node", *(f"{nodes} nodes" for nodes in NODES)]
    return _table(head, rows())


def _sizes(arguments: argparse.Namespace) -> list[str]:
    def rows() -> Iterator[Sequence[str]]:
        for shard_images in (1000, arguments.shard_images, 20_000):
            manifest = made_up(arguments.images, shard_images)
            text = manifest.to_json()
            read_s, held = _loaded(text)
            sizes = [shard.samples for shard in manifest.shards]
            order = _taken(functools.partial(EpochOrder, sizes, seed=0, epoch=0, shuffle=True))
            yield (
                f"{shard_images:,}",
                f"{manifest.shards[0].bytes / 1e6:.1f}",
                f"{len(manifest.shards):,}",
                f"{len(text) / 1e6:.1f}",
                f"{read_s:.2f}",
                f"{held / 1e6:.1f}",
                f"{order / 1e6:.2f}",
            )

    head = ["images a shard", "MB a shard", "shards", "manifest, MB", "read in s", "in memory, MB", "order, MB"]
    return [
        *_table(head, rows()),
        "",
        f"Indexes that a process keeps: of {KEPT_SAMPLES:,} samples at most. Packing plans the order of all items in "
        f"one process: {_planned_bytes():.0f} bytes an item, and the names of the files beside it.",
    ]


def _loaded(text: str) -> tuple[float, int]:
    """Seconds to read a manifest, and the bytes that it takes then."""
    import tempfile
    from pathlib import Path

    from fastdps.shards.format import MANIFEST, read_manifest

    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / MANIFEST).write_text(text, encoding="utf-8")
        started_s = time.perf_counter()
        read_manifest(directory)
        seconds = time.perf_counter() - started_s
        return seconds, _taken(lambda: read_manifest(directory))


def _planned_bytes() -> float:
    """What planning takes at its peak for each item, where items are numbers."""
    from fastdps.packing.options import PackOptions
    from fastdps.packing.plan import plan_sets
    from fastdps.packing.sources.deadleaves import DeadLeaves

    items = 1_000_000
    tracemalloc.start()
    try:
        plan_sets(DeadLeaves(items, 64, seed=0), PackOptions(encoding="raw", size=64))
        return tracemalloc.get_traced_memory()[1] / items
    finally:
        tracemalloc.stop()


def _taken(make: Callable[[], Any]) -> int:
    """The bytes of Python's and numpy's memory that something takes."""
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
        del made
        return taken
    finally:
        tracemalloc.stop()


def _mixed(arguments: argparse.Namespace) -> list[str]:
    def rows() -> Iterator[Sequence[str]]:
        for shard_images in (1000, arguments.shard_images, 20_000):
            labels = np.random.default_rng(1).standard_normal(SHUFFLED_SHARDS * arguments.shard_images)
            found = mix(shard_images, labels)
            in_order = mix(shard_images, np.sort(labels))
            yield (
                f"{shard_images:,}",
                f"{found.shards:.2f}",
                f"{found.variance_ratio:.3f}",
                f"{found.pairs_again:.2%}",
                f"{in_order.variance_ratio:.0f}",
            )

    head = [
        "images a shard",
        "shards in a batch of 256",
        "variance of batch means",
        "pairs again",
        "if packed in order",
    ]
    return _table(head, rows())
