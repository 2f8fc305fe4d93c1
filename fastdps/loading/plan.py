"""What one process reads in an epoch, cut into segments.

A segment is a number of whole batches, with the indexes of just the shards they lie in. Segments bound what is
open at a time (index lines, files, address space) and the time to the first batch, however large the set is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdps.loading.index_cache import IndexCache
from fastdps.loading.members import ShardIndex
from fastdps.loading.order import EpochOrder, cut
from fastdps.shards import Manifest

SEGMENT_SAMPLES = 32_768  # 0.1 s to the first batch; half as many cost 10 % of the throughput of raw images on 2 cores
SEGMENT_SHARDS = 64


class Entry(NamedTuple):
    """One sample: the index of its shard and its row there."""

    shard_index: ShardIndex
    row: int


class Part(NamedTuple):
    """Samples of one shard that follow each other in the order: its index and their rows (n,) int64 there."""

    shard_index: ShardIndex
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """Samples to be read in this order, all batches full but perhaps the last; `ids` (n,) int64."""

    parts: tuple[Part, ...]
    ids: NDArray[np.int64]
    batch_size: int

    @property
    def batches(self) -> int:
        """How many batches it makes."""
        return -(-len(self.ids) // self.batch_size)

    def batch_ids(self, batch: int) -> NDArray[np.int64]:
        """The sample ids of one batch."""
        return self.ids[batch * self.batch_size : (batch + 1) * self.batch_size]

    def batch_parts(self, batch: int) -> list[Part]:
        """The parts of one batch: mostly one, two where it ends a shard."""
        start, stop = batch * self.batch_size, (batch + 1) * self.batch_size
        found: list[Part] = []
        for index, rows in self.parts:
            own = rows[max(start, 0) : max(stop, 0)]
            if len(own):
                found.append(Part(index, own))
            start, stop = start - len(rows), stop - len(rows)
        return found

    def entries(self, batch: int) -> list[Entry]:
        """The samples of one batch, one by one."""
        return [Entry(index, row) for index, rows in self.batch_parts(batch) for row in rows.tolist()]


def segments(
    indexes: IndexCache,
    manifest: Manifest,
    order: EpochOrder,
    part: Sequence[range],
    *,
    start_step: int,
    batch_size: int,
) -> Iterator[Segment]:
    """The batches of a part of the order, given as ranges, from `start_step` on, opened segment by segment.

    Raises `ShardError` when it comes to a shard that is missing, damaged, or does not fit its index.
    """
    per_shard = max(1, manifest.samples // len(manifest.shards))
    steps = max(1, min(SEGMENT_SAMPLES, SEGMENT_SHARDS * per_shard) // batch_size)
    for start in range(start_step * batch_size, sum(map(len, part)), steps * batch_size):
        positions = cut(part, range(start, start + steps * batch_size))
        runs = (run for numbers in positions for run in order.runs(numbers))
        parts = tuple(Part(indexes.open(manifest.shards[run.shard]), run.rows) for run in runs)
        yield Segment(parts, np.concatenate([index.ids[rows] for index, rows in parts]), batch_size)
