"""What one process reads in an epoch, cut into segments.

A segment is a number of whole batches, with the indexes of just the shards they lie in. Segments bound what is
open at a time (index lines, files, address space) and the time to the first batch, however large the set is.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdps.loading.index_cache import IndexCache
from fastdps.loading.members import ShardIndex
from fastdps.loading.order import EpochOrder, Visit, cut
from fastdps.shards.format import Manifest

#: 0.1 s to the first batch; a quarter costs some 8 % of the throughput of raw images on 2 cores.
SEGMENT_SAMPLES = 32_768
SEGMENT_SHARDS = 64


class SampleRef(NamedTuple):
    """One sample: the index of its shard and its row there."""

    shard_index: ShardIndex
    row: int


class ShardSlice(NamedTuple):
    """Samples of one shard that follow each other in the order: its index and their rows (n,) int64 there."""

    shard_index: ShardIndex
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """Samples to be read in this order, all batches full but perhaps the last; `ids` (n,) int64."""

    slices: tuple[ShardSlice, ...]
    ids: NDArray[np.int64]
    batch_size: int

    @property
    def batches(self) -> int:
        """How many batches it makes."""
        return -(-len(self.ids) // self.batch_size)

    def batch_ids(self, batch: int) -> NDArray[np.int64]:
        """The sample ids of one batch."""
        return self.ids[batch * self.batch_size : (batch + 1) * self.batch_size]

    def batch_slices(self, batch: int) -> list[ShardSlice]:
        """The parts of one batch: mostly one, two where it ends a shard."""
        start, stop = batch * self.batch_size, (batch + 1) * self.batch_size
        found: list[ShardSlice] = []
        for index, rows in self.slices:
            own = rows[max(start, 0) : max(stop, 0)]
            if len(own):
                found.append(ShardSlice(index, own))
            start, stop = start - len(rows), stop - len(rows)
        return found

    def samples(self, batch: int) -> list[SampleRef]:
        """The samples of one batch, one by one."""
        return [SampleRef(index, row) for index, rows in self.batch_slices(batch) for row in rows.tolist()]


def segments(
    indexes: IndexCache,
    manifest: Manifest,
    order: EpochOrder,
    part: Sequence[range],
    places: Iterable[range],
    *,
    batch_size: int,
    wait_for_shard: Callable[[], None] = lambda: None,
) -> Iterator[Segment]:
    """A part of the order, given as ranges, opened segment by segment, each at one of the places in it.

    `wait_for_shard` is called before each visit of a shard. Raises `ShardError` when it comes to a shard that is
    missing, damaged, or does not fit its index.
    """
    for place in places:
        parts = []
        for run in (run for numbers in cut(part, place) for run in order.row_runs(numbers)):
            wait_for_shard()
            parts.append(ShardSlice(indexes.open(manifest.shards[run.shard]), run.rows))
        yield Segment(tuple(parts), np.concatenate([index.ids[rows] for index, rows in parts]), batch_size)


def even_places(samples: int, manifest: Manifest, *, start: int, batch_size: int) -> Iterator[range]:
    """Segments of as many batches each, from the sample `start` to the last."""
    size = _most_samples(manifest, batch_size)
    return (range(at, min(at + size, samples)) for at in range(start, samples, size))


def places_within(
    visits: Sequence[Visit], manifest: Manifest, *, start: int, batch_size: int, most_bytes: int
) -> Iterator[range]:
    """Segments whose shards have at most so many bytes, or as few as those of one batch; visits are those of all."""
    ends = list(itertools.accumulate(visit.stop - visit.start for visit in visits))
    most_samples = _most_samples(manifest, batch_size)
    while ends and start < ends[-1]:
        shards: set[int] = set()
        size, stop = 0, start
        for number in range(bisect.bisect_right(ends, start), len(ends)):
            shard = visits[number].shard
            size += 0 if shard in shards else manifest.shards[shard].bytes
            if size > most_bytes or stop - start >= most_samples:
                break
            shards.add(shard)
            stop = ends[number]
        if stop < ends[-1] or stop - start > most_samples:
            whole = min(stop - start, most_samples) // batch_size * batch_size
            stop = min(start + max(whole, batch_size), ends[-1])
        yield range(start, stop)
        start = stop


def batch_bytes(manifest: Manifest, batch_size: int) -> int:
    """The most bytes that the shards of one batch can have: two that it takes a part of, and small ones between."""
    largest = sorted(shard.bytes for shard in manifest.shards)[-2:]
    inner, left = 0, batch_size - 2
    for samples, size in sorted((shard.samples, shard.bytes) for shard in manifest.shards)[: max(0, left)]:
        left -= samples
        if left < 0:
            break
        inner += size
    return sum(largest) + inner


def _most_samples(manifest: Manifest, batch_size: int) -> int:
    """The samples of a segment, a number of whole batches."""
    per_shard = max(1, manifest.samples // len(manifest.shards))
    return max(1, min(SEGMENT_SAMPLES, SEGMENT_SHARDS * per_shard) // batch_size) * batch_size
