"""Prefetch the shards of a remote set in the order in which epochs read them, across the end of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastdps.loading.order import EpochOrder, cut
from fastdps.loading.segments import batch_bytes, places_within
from fastdps.shards.cache import Prefetch, StagedSet
from fastdps.shards.format import Manifest, Shard

#: Bytes of the shards of a segment: all of them must be local before its first batch.
SEGMENT_BYTES = 128 << 20


def segment_bytes(manifest: Manifest, *, quota: int, batch_size: int) -> int:
    """Return the byte limit of a segment's shards: half of the quota is read while the other half is fetched."""
    return max(min(quota // 2, SEGMENT_BYTES), batch_bytes(manifest, batch_size))


@dataclass(frozen=True)
class _EpochReads:
    """The reads of an epoch.

    Attributes:
        key: The epoch, the ranges of its order, and the first sample in these.
        places: The positions of the segments.
        visits: The shards that the segments visit, each with its number of samples.
    """

    key: tuple[int, tuple[range, ...], int]
    places: list[range]
    visits: list[tuple[Shard, int]]


class StagedEpochs:
    """The epochs of a staged set.

    Args:
        staged: The set.
        manifest: Its manifest.
        order: Returns the order of an epoch.
        part: The ranges of the order that this process reads in a complete epoch.
        batch_size: Samples per batch.
    """

    def __init__(
        self,
        staged: StagedSet,
        manifest: Manifest,
        order: Callable[[int], EpochOrder],
        part: Sequence[range],
        *,
        batch_size: int,
    ) -> None:
        self._staged, self._manifest, self._order, self._part = staged, manifest, order, part
        self._batch_size = batch_size
        self._next: tuple[_EpochReads, Prefetch] | None = None

    def begin(self, epoch: int, part: Sequence[range], start: int, then: int | None) -> StagedEpoch:
        """Start to prefetch the shards of an epoch, unless already started, followed by the shards of epoch `then`.

        Args:
            epoch: The epoch.
            part: The ranges of its order to read.
            start: The first sample in these.
            then: The next epoch, None for no prefetching beyond this one.
        """
        if self._next and self._next[0].key == (epoch, tuple(part), start):
            (reads, prefetch), self._next = self._next, None
        else:
            self.close()
            reads = self._reads_of(epoch, part, start)
            prefetch = self._staged.prefetch(reads.visits)
        following = None
        if then is not None:
            following = self._reads_of(then, self._part, 0)
            prefetch.extend(following.visits)
        return StagedEpoch(self, reads, following, prefetch)

    def keep(self, reads: _EpochReads, prefetch: Prefetch) -> None:
        """Continue to prefetch shards of an epoch that has not begun."""
        self.close()
        self._next = reads, prefetch

    def close(self) -> None:
        """Release the shards prefetched for an epoch that has not begun."""
        if self._next:
            self._next[1].close()
            self._next = None

    def _reads_of(self, epoch: int, part: Sequence[range], start: int) -> _EpochReads:
        manifest, order, batch_size = self._manifest, self._order(epoch), self._batch_size
        most_bytes = segment_bytes(manifest, quota=self._staged.quota, batch_size=batch_size)
        visits = [visit for numbers in part for visit in order.visits(numbers)]
        places = list(places_within(visits, manifest, start=start, batch_size=batch_size, most_bytes=most_bytes))
        in_segments = [
            (manifest.shards[visit.shard], visit.stop - visit.start)
            for place in places
            for numbers in cut(part, place)
            for visit in order.visits(numbers)
        ]
        return _EpochReads((epoch, tuple(part), start), places, in_segments)


class StagedEpoch:
    """One epoch, or a part of one, that is being read."""

    def __init__(
        self, epochs: StagedEpochs, reads: _EpochReads, following: _EpochReads | None, prefetch: Prefetch
    ) -> None:
        self._epochs, self._following, self._prefetch = epochs, following, prefetch
        self._left = sum(samples for _, samples in reads.visits)
        self.places = reads.places

    def wait(self) -> None:
        """Wait for the shard of the next visit, see `Prefetch`."""
        self._prefetch.wait()

    def release(self, samples: int) -> None:
        """Count further samples as read, and release the shards of which all samples have been read."""
        self._left -= samples
        self._prefetch.release(samples)

    def cancel(self) -> None:
        """Stop prefetching if samples remain to be read; `wait` raises `CancelledError` from now on."""
        if self._left:
            self._prefetch.cancel()

    def close(self) -> None:
        """Release all shards, except those prefetched for the next epoch if this one was read to its end."""
        if self._left or self._following is None:
            self._prefetch.close()
        else:
            self._epochs.keep(self._following, self._prefetch)
