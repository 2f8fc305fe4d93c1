"""The unit of work of packing: one shard, which whoever packs it and however often has the same bytes and name."""

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
    """One shard to be packed: of which set, from what, how, and where it goes. It can be sent to another machine."""

    split: str
    source: Source
    shard: ShardPlan
    options: PackOptions
    target: Target

    @property
    def name(self) -> str:
        """The shard as users know it."""
        return self.target.named(self.shard.name)


class PackedShard(NamedTuple):
    """Work whose files are in place, and what the ledger is to say of it."""

    work: ShardWork
    record: ShardRecord


#: Called with the work, a number of its items that were done, and those of them that were rejected.
OnChunk = Callable[[ShardWork, int, list[Reject]], None]


class WrittenShard(NamedTuple):
    """A shard that is written and not yet in place; no draft if all of its items were rejected."""

    work: ShardWork
    draft: Draft | None
    rejects: list[Reject]

    def deliver(self) -> PackedShard:
        """Put it in place."""
        if self.draft:
            self.work.target.deliver(self.draft)
        shard = self.draft.shard if self.draft else None
        return PackedShard(self.work, ShardRecord(self.work.shard.number, shard, self.rejects))


def write_shard(work: ShardWork, fragments: Iterator[Fragment], temporary: Path, on_chunk: OnChunk) -> WrittenShard:
    """Write one shard from the fragments of its chunks, in `temporary` if its target wants that."""
    rejects: list[Reject] = []
    with ShardWriter(work.target.scratch(temporary), work.shard.name) as writer:
        for chunk in work.shard.chunks(work.options):
            fragment = next(fragments)
            writer.add(fragment)
            rejects += fragment.rejects
            on_chunk(work, len(chunk.items), fragment.rejects)
        return WrittenShard(work, writer.finish(), rejects)
