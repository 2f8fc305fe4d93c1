"""Divide the samples that a process reads in an epoch into segments.

A segment is a number of complete batches, with the indexes of the shards they are in. Segments bound the resources in
use (index lines, files, address space) and the time to the first batch, independent of the size of the set.
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

#: Takes 0.1 s to the first batch. A quarter of it costs about 8 % of the throughput of raw images on 2 cores.
SEGMENT_SAMPLES = 32_768
SEGMENT_SHARDS = 64


class SampleRef(NamedTuple):
    """A sample.

    Attributes:
        shard_index: The index of its shard.
        row: Its row in the index.
    """

    shard_index: ShardIndex
    row: int


class ShardSlice(NamedTuple):
    """Consecutive samples of the order in one shard.

    Attributes:
        shard_index: The index of the shard.
        rows: Their rows in the index, int64 (n,).
    """

    shard_index: ShardIndex
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """Samples to be read in this order. All batches are full, except possibly the last.

    Attributes:
        slices: The samples, by shard.
        ids: Their sample ids, int64 (n,).
        batch_size: Samples per batch.
    """

    slices: tuple[ShardSlice, ...]
    ids: NDArray[np.int64]
    batch_size: int

    @property
    def batches(self) -> int:
        """The number of batches."""
        return -(-len(self.ids) // self.batch_size)

    def batch_ids(self, batch: int) -> NDArray[np.int64]:
        """Return the sample ids of a batch."""
        return self.ids[batch * self.batch_size : (batch + 1) * self.batch_size]

    def batch_slices(self, batch: int) -> list[ShardSlice]:
        """Return the slices of a batch: usually one, or two where a shard ends."""
        start, stop = batch * self.batch_size, (batch + 1) * self.batch_size
        found: list[ShardSlice] = []
        for index, rows in self.slices:
            own = rows[max(start, 0) : max(stop, 0)]
            if len(own):
                found.append(ShardSlice(index, own))
            start, stop = start - len(rows), stop - len(rows)
        return found

    def samples(self, batch: int) -> list[SampleRef]:
        """Return the samples of a batch, one by one."""
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
    """Open a part of the order segment by segment.

    Args:
        indexes: The indexes of the set.
        manifest: Its manifest.
        order: The order of the epoch.
        part: The part of the order, as ranges.
        places: The positions of the segments in the part.
        batch_size: Samples per batch.
        wait_for_shard: Called before each visit of a shard.

    Raises:
        ShardError: A shard is missing, damaged, or does not fit its index.
    """
    for place in places:
        slices: list[ShardSlice] = []
        for run in (run for numbers in cut(part, place) for run in order.row_runs(numbers)):
            wait_for_shard()
            index = indexes.open(manifest.shards[run.shard])
            if slices and slices[-1].shard_index is index:
                slices[-1] = ShardSlice(index, np.concatenate([slices[-1].rows, run.rows]))
            else:
                slices.append(ShardSlice(index, run.rows))
        yield Segment(tuple(slices), np.concatenate([index.ids[rows] for index, rows in slices]), batch_size)


def even_places(samples: int, manifest: Manifest, *, start: int, batch_size: int) -> Iterator[range]:
    """Return the positions of segments of equal numbers of batches, from the sample `start` to the last."""
    size = _most_samples(manifest, batch_size)
    return (range(at, min(at + size, samples)) for at in range(start, samples, size))


def places_within(
    visits: Sequence[Visit], manifest: Manifest, *, start: int, batch_size: int, most_bytes: int
) -> Iterator[range]:
    """Yield the positions of segments whose shards have at most `most_bytes`, or that are one batch.

    Args:
        visits: All shards that are read, in order.
        manifest: The manifest of the set.
        start: The first sample of the first segment.
        batch_size: Samples per batch.
        most_bytes: The limit of the bytes of a segment's shards.
    """
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
    """Return an upper bound of the bytes of the shards of a batch: two used in part, and small ones between them."""
    largest = sorted(shard.bytes for shard in manifest.shards)[-2:]
    inner, left = 0, batch_size - 2
    for samples, size in sorted((shard.samples, shard.bytes) for shard in manifest.shards)[: max(0, left)]:
        left -= samples
        if left < 0:
            break
        inner += size
    return sum(largest) + inner


def _most_samples(manifest: Manifest, batch_size: int) -> int:
    """Return the number of samples of a segment, a multiple of the batch size."""
    per_shard = max(1, manifest.samples // len(manifest.shards))
    return max(1, min(SEGMENT_SAMPLES, SEGMENT_SHARDS * per_shard) // batch_size) * batch_size
