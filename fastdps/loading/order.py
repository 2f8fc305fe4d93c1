"""The order of an epoch and its division over processes: pure functions of (seed, epoch, sizes of the shards).

    shards of the set --permute--> shards of the epoch --permute within each--> one order of all samples
    that order --cut into `world_size` contiguous parts--> the samples of one process --cut--> its batches

Contiguous parts let a process read whole shards, wherever a cut allows it. Packing has shuffled the samples over
the shards already, so that permuting shards, and samples within a shard, mixes well.

The permutations come from Philox, a counter-based generator, keyed by (seed, epoch) and counted by shard. Only its
raw bits are used: numpy keeps those the same from version to version, which it does not promise of `permutation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: The counter of the permutation of the shards; the one within shard k has k + 1.
_SHARDS_STREAM = 0


class RowRun(NamedTuple):
    """Samples that follow each other in the order and lie in one shard.

    `shard` is the shard's position in the manifest, `rows` (n,) int64 are positions of samples in that shard.
    """

    shard: int
    rows: NDArray[np.int64]


class Visit(NamedTuple):
    """A part of one shard in the order: from `start` to `stop` of its `size` samples, in their order of the epoch."""

    shard: int
    start: int
    stop: int
    size: int


def permutation(n: int, seed: int, epoch: int, stream: int) -> NDArray[np.int64]:
    """A permutation of 0 .. n-1, int64 (n,): the ranks of n random words drawn for (seed, epoch, stream)."""
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(n)
    return np.argsort(words, kind="stable")


def part_of(samples: int, rank: int, world_size: int) -> range:
    """The positions of the order that process `rank` of `world_size` reads; parts differ by one sample at most."""
    return range(samples * rank // world_size, samples * (rank + 1) // world_size)


def cut(ranges: Sequence[range], wanted: range) -> list[range]:
    """The numbers at the places `wanted` of ranges that are laid end to end, again as ranges."""
    found, place = [], 0
    for numbers in ranges:
        start, stop = max(wanted.start - place, 0), min(wanted.stop - place, len(numbers))
        if start < stop:
            found.append(numbers[start:stop])
        place += len(numbers)
    return found


def left_after(left: Sequence[range], steps: int, batch_size: int, world_size: int) -> list[range]:
    """The positions that are still to be read, of those in `left`, once every process has done so many steps."""
    total = sum(map(len, left))
    parts = (part_of(total, rank, world_size) for rank in range(world_size))
    return [numbers for part in parts for numbers in cut(left, part[steps * batch_size :])]


def steps_per_epoch(samples: int, batch_size: int, world_size: int) -> int:
    """The steps of an epoch, the same on every process: what the largest part needs at `batch_size` a process."""
    largest = -(-samples // world_size)
    return -(-largest // batch_size)


def global_batch_size(samples: int, step: int, batch_size: int, world_size: int) -> int:
    """The samples that all processes together have in `step`."""
    smaller, larger = samples // world_size, -(-samples // world_size)
    with_larger = samples - smaller * world_size
    sizes = [min(max(part - step * batch_size, 0), batch_size) for part in (smaller, larger)]
    return sizes[0] * (world_size - with_larger) + sizes[1] * with_larger


class EpochOrder:
    """The order of all samples of one epoch. Work and memory grow with the shards, not with the samples.

    `shard_samples` are the numbers of samples of the shards in the manifest's order; without `shuffle` the order is
    the packed one.
    """

    def __init__(self, shard_samples: Sequence[int], *, seed: int, epoch: int, shuffle: bool) -> None:
        self._seed, self._epoch, self._shuffle = seed, epoch, shuffle
        sizes = np.asarray(shard_samples, dtype=np.int64)
        self._shards = self._permutation(len(sizes), _SHARDS_STREAM)
        self._sizes = sizes[self._shards]
        self._ends = np.cumsum(self._sizes)

    def row_runs(self, positions: range) -> Iterator[RowRun]:
        """The samples at a contiguous range of positions of the order, one `RowRun` for each shard touched."""
        for shard, start, stop, size in self.visits(positions):
            yield RowRun(shard, self._permutation(size, shard + 1)[start:stop])

    def visits(self, positions: range) -> Iterator[Visit]:
        """The same shards, and how much of each, without the work of permuting."""
        start = positions.start
        place = int(np.searchsorted(self._ends, start, side="right"))
        while start < positions.stop:
            size, end = int(self._sizes[place]), int(self._ends[place])
            stop = min(positions.stop, end)
            if stop > start:
                yield Visit(int(self._shards[place]), start - end + size, stop - end + size, size)
            start, place = stop, place + 1

    def _permutation(self, n: int, stream: int) -> NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(n, dtype=np.int64)
        return permutation(n, self._seed, self._epoch, stream)
