"""The packing of one shard. It is deterministic: any worker, and any repetition, gives the same bytes and name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastdps.packing.fragment import Fragment, Reject
from fastdps.packing.ledger import ShardRecord
from fastdps.packing.options import PackOptions
from fastdps.packing.plan import ShardPlan
from fastdps.packing.sources.source import Source
from fastdps.packing.target import Target
from fastdps.packing.writer import Draft, ShardWriter


@dataclass(frozen=True)
class ShardWork:
    """The task to pack one shard. It can be pickled and sent to another machine.

    Attributes:
        split: The name of the set.
        source: The source of the items.
        shard: The items of the shard.
        options: Options of packing.
        target: The place of the set.
    """

    split: str
    source: Source
    shard: ShardPlan
    options: PackOptions
    target: Target

    @property
    def name(self) -> str:
        """The path or URL of the shard, for messages."""
        return self.target.display_name(self.shard.name)


class PackedShard(NamedTuple):
    """A shard whose files are in place, and its record for the ledger."""

    work: ShardWork
    record: ShardRecord


#: Called after each chunk with the work, the number of items in the chunk, and the rejected ones.
OnChunk = Callable[[ShardWork, int, list[Reject]], None]


class WrittenShard(NamedTuple):
    """A shard that is written but not in place yet. `draft` is None if all items were rejected."""

    work: ShardWork
    draft: Draft | None
    rejects: list[Reject]

    def deliver(self) -> PackedShard:
        """Move or upload the files to the target."""
        if self.draft:
            self.work.target.deliver(self.draft)
        shard = self.draft.shard if self.draft else None
        return PackedShard(self.work, ShardRecord(self.work.shard.number, shard, self.rejects))


def write_shard(work: ShardWork, fragments: Iterator[Fragment], temporary: Path, on_chunk: OnChunk) -> WrittenShard:
    """Write one shard from the fragments of its chunks.

    Args:
        work: The shard.
        fragments: The fragments, in order; only those of this shard are consumed.
        temporary: A directory for the files of targets that are not local directories.
        on_chunk: Called after each chunk.

    Returns:
        The written shard, which `deliver` puts in place.

    Raises:
        FastDPSError: A file cannot be written.
    """
    rejects: list[Reject] = []
    with ShardWriter(work.target.scratch(temporary), work.shard.name) as writer:
        for chunk in work.shard.chunks(work.options):
            fragment = next(fragments)
            writer.add(fragment)
            rejects += fragment.rejects
            on_chunk(work, len(chunk.items), fragment.rejects)
        return WrittenShard(work, writer.finish(), rejects)
