"""The order of the samples of an epoch and its division among processes: functions of (seed, epoch, shard sizes).

    shards of the set --permute--> shards of the epoch --permute within each--> order of all samples
    order --cut into `world_size` contiguous parts--> samples of one process --cut--> its batches

With contiguous parts a process reads complete shards, except at the cuts. Packing has already shuffled the samples over
the shards, so permuting the shards, and the samples within a shard, mixes well.

The permutations come from Philox, a counter-based generator, keyed by (seed, epoch) with the shard as counter. Only its
raw bits are used, because numpy guarantees them across versions, which it does not for `permutation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: The counter of the permutation of the shards. The permutation within shard k has the counter k + 1.
_SHARDS_STREAM = 0


class RowRun(NamedTuple):
    """Consecutive samples of the order in one shard.

    Attributes:
        shard: The position of the shard in the manifest.
        rows: Positions of the samples in the shard, int64 (n,).
    """

    shard: int
    rows: NDArray[np.int64]


class Visit(NamedTuple):
    """A part of one shard in the order: samples `start` to `stop` of `size`, in the order of the epoch.

    Attributes:
        shard: The position of the shard in the manifest.
        start: The first sample.
        stop: The end, exclusive.
        size: The number of samples of the shard.
    """

    shard: int
    start: int
    stop: int
    size: int


def permutation(n: int, seed: int, epoch: int, stream: int) -> NDArray[np.int64]:
    """Return a permutation of 0 to n - 1, int64 (n,): the order of n random words drawn for (seed, epoch, stream)."""
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, 0, 0, stream], dtype=np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(n)
    return np.argsort(words, kind="stable")


def part_of(samples: int, rank: int, world_size: int) -> range:
    """Return the positions of the order that process `rank` of `world_size` reads. Parts differ by at most one sample.

    Example:
        >>> part_of(10, rank=1, world_size=3)
        range(3, 6)
    """
    return range(samples * rank // world_size, samples * (rank + 1) // world_size)


def cut(ranges: Sequence[range], wanted: range) -> list[range]:
    """Return the slice `wanted` of the concatenation of ranges, as ranges.

    Example:
        >>> cut([range(5), range(10, 15)], range(3, 7))
        [range(3, 5), range(10, 12)]
    """
    found, offset = [], 0
    for numbers in ranges:
        start, stop = max(wanted.start - offset, 0), min(wanted.stop - offset, len(numbers))
        if start < stop:
            found.append(numbers[start:stop])
        offset += len(numbers)
    return found


def left_after(left: Sequence[range], steps: int, batch_size: int, world_size: int) -> list[range]:
    """Return the positions in `left` that remain to be read after `steps` steps of every process."""
    total = sum(map(len, left))
    parts = (part_of(total, rank, world_size) for rank in range(world_size))
    return [numbers for part in parts for numbers in cut(left, part[steps * batch_size :])]


def step_parts(left: Sequence[range], rank: int, batch_size: int, world_size: int) -> list[range]:
    """Return what process `rank` reads of `left` if each step, of `batch_size * world_size` samples, is divided.

    The samples of a step then do not depend on the number of processes, if their batch size changes with it.

    Example:
        >>> step_parts([range(10)], rank=1, batch_size=2, world_size=2)
        [range(2, 4), range(6, 8), range(9, 10)]
    """
    if world_size == 1:
        return list(left)
    return [numbers for places in step_places(left, rank, batch_size, world_size) for numbers in places]


def step_places(
    left: Sequence[range], rank: int, batch_size: int, world_size: int, *, start_step: int = 0
) -> Iterator[list[range]]:
    """Yield what process `rank` reads of `left` in each step from `start_step` on, see `step_parts`."""
    total, of_all = sum(map(len, left)), batch_size * world_size
    for start in range(start_step * of_all, total, of_all):
        own = part_of(min(of_all, total - start), rank, world_size)
        yield cut(left, range(start + own.start, start + own.stop))


def steps_per_epoch(samples: int, batch_size: int, world_size: int) -> int:
    """Return the steps of an epoch, equal on every process: the batches of `batch_size` in the largest part."""
    largest = -(-samples // world_size)
    return -(-largest // batch_size)


def global_batch_size(samples: int, step: int, batch_size: int, world_size: int) -> int:
    """Return the number of samples of all processes in a step."""
    smaller, larger = samples // world_size, -(-samples // world_size)
    with_larger = samples - smaller * world_size
    sizes = [min(max(part - step * batch_size, 0), batch_size) for part in (smaller, larger)]
    return sizes[0] * (world_size - with_larger) + sizes[1] * with_larger


class EpochOrder:
    """The order of all samples of an epoch. Work and memory grow with the number of shards, not of samples.

    Args:
        shard_samples: The number of samples of each shard, in the order of the manifest.
        seed: The seed.
        epoch: The epoch.
        shuffle: False for the packed order.
    """

    def __init__(self, shard_samples: Sequence[int], *, seed: int, epoch: int, shuffle: bool) -> None:
        self._seed, self._epoch, self._shuffle = seed, epoch, shuffle
        sizes = np.asarray(shard_samples, dtype=np.int64)
        self._shards = self._permutation(len(sizes), _SHARDS_STREAM)
        self._sizes = sizes[self._shards]
        self._ends = np.cumsum(self._sizes)
        self._last: tuple[int, NDArray[np.int64]] | None = None

    def row_runs(self, positions: range) -> Iterator[RowRun]:
        """Yield the samples at a contiguous range of positions, one `RowRun` per shard."""
        for shard, start, stop, size in self.visits(positions):
            last = self._last  # several runs of one shard follow each other where steps are divided
            if last is None or last[0] != shard:
                last = self._last = shard, self._permutation(size, shard + 1)
            yield RowRun(shard, last[1][start:stop])

    def visits(self, positions: range) -> Iterator[Visit]:
        """Yield the shards at a contiguous range of positions, and the part of each, without permuting samples."""
        start = positions.start
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < positions.stop:
            size, end = int(self._sizes[number]), int(self._ends[number])
            stop = min(positions.stop, end)
            if stop > start:
                yield Visit(int(self._shards[number]), start - end + size, stop - end + size, size)
            start, number = stop, number + 1

    def _permutation(self, n: int, stream: int) -> NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(n, dtype=np.int64)
        return permutation(n, self._seed, self._epoch, stream)
