"""The shards of a store as epochs read them: the next ones come while one is read, and on into the next epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastdps.loading.order import EpochOrder, cut
from fastdps.loading.segments import batch_bytes, places_within
from fastdps.shards.cache import Prefetch, StagedSet
from fastdps.shards.format import Manifest, Shard

#: Of the shards in a segment: all of them have to be here before its first batch.
SEGMENT_BYTES = 128 << 20


def segment_bytes(manifest: Manifest, *, quota: int, batch_size: int) -> int:
    """The most bytes that the shards of a segment may have: half of the quota is read while the other half comes."""
    return max(min(quota // 2, SEGMENT_BYTES), batch_bytes(manifest, batch_size))


@dataclass(frozen=True)
class _EpochReads:
    """What is read of an epoch.

    `key` are its number, ranges of its order, and the first sample of these; `places` the segments; `visits` the shards
    that they visit, each with a number of samples.
    """

    key: tuple[int, tuple[range, ...], int]
    places: list[range]
    visits: list[tuple[Shard, int]]


class StagedEpochs:
    """The epochs of a staged set. `order` gives that of an epoch, of which `part` is what this process reads."""

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
        """Begin to bring what is read of an epoch, unless it has been begun, and after that the epoch `then`."""
        if self._next and self._next[0].key == (epoch, tuple(part), start):
            (reads, prefetch), self._next = self._next, None
        else:
            self.close()
            reads = self._plan(epoch, part, start)
            prefetch = self._staged.prefetch(reads.visits)
        following = None
        if then is not None:
            following = self._plan(then, self._part, 0)
            prefetch.extend(following.visits)
        return StagedEpoch(self, reads, following, prefetch)

    def keep(self, reads: _EpochReads, prefetch: Prefetch) -> None:
        """Let what is planned come on until it is begun with."""
        self.close()
        self._next = reads, prefetch

    def close(self) -> None:
        """Let go of what has come for an epoch that is not begun with."""
        if self._next:
            self._next[1].close()
            self._next = None

    def _plan(self, epoch: int, part: Sequence[range], start: int) -> _EpochReads:
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
        """Let go of the shards of which everything has been read, now that so many more samples have been."""
        self._left -= samples
        self._prefetch.release(samples)

    def cancel(self) -> None:
        """Bring nothing more if there is something left to be read; whoever waits gets a `CancelledError`."""
        if self._left:
            self._prefetch.cancel()

    def close(self) -> None:
        """Let go of everything, or once all is read of all but what comes for the next epoch."""
        if self._left or self._following is None:
            self._prefetch.close()
        else:
            self._epochs.keep(self._following, self._prefetch)
