"""One set of a packing run: which of its shards are packed, which are missing, and its manifest once it is complete."""

from __future__ import annotations

from fastdps.packing.fragment import Reject, make_fragment
from fastdps.packing.ledger import Ledger, ShardRecord, read_rejects, refuse_difference
from fastdps.packing.options import PackOptions, Share
from fastdps.packing.plan import SetPlan, ShardPlan, WorkChunk
from fastdps.packing.target import Target
from fastdps.packing.work import ShardWork
from fastdps.shards.format import MANIFEST, Manifest, component_extensions, read_manifest

#: Missing shards that the message of a failed merge names.
SHOWN_SHARDS = 10


class SetInProgress:
    """One set of a run: what of it is there already, and what is missing."""

    def __init__(self, plan: SetPlan, target: Target, options: PackOptions, share: Share | None = None) -> None:
        self.plan, self.target, self._options, self._share = plan, target, options, share
        self._ledger = Ledger(target, plan.identity, share)
        self._rejects_of_parts: dict[int, list[Reject]] = {}
        self.is_finished = target.size(MANIFEST) is not None

    def refuse_difference(self) -> None:
        """Raise `ConfigError` when what is there has another identity."""
        if self.is_finished:
            refuse_difference(self.target, read_manifest(self.target.location).source, self.plan.identity)
        else:
            self._ledger.refuse_difference()

    def open(self) -> None:
        """Find out what is done, and remove what an earlier run left unfinished."""
        self._ledger.sweep()
        if self.is_finished:
            self._ledger.remove_all()
        else:
            self._ledger.read(self._still_rejected)
            if self._planned():
                self._ledger.begin()

    def look(self) -> None:
        """Find out what is done by any run, and change nothing."""
        if not self.is_finished:
            self._ledger.read()

    @property
    def planned(self) -> int:
        """The number of items that are to be packed in this run or were before."""
        return sum(len(shard.items) for shard in self._planned())

    @property
    def done(self) -> int:
        """The number of those that need no work any more."""
        return self.planned - sum(len(shard.items) for shard in self.missing())

    def missing(self) -> list[ShardPlan]:
        """The shards that this run is still to make."""
        records = self._ledger.records
        return [] if self.is_finished else [shard for shard in self._planned() if shard.number not in records]

    def missing_of_all(self) -> list[int]:
        """The numbers of the shards that no run has made."""
        all_runs = Ledger(self.target, self.plan.identity)
        all_runs.read()
        return [shard.number for shard in self.plan.shards if shard.number not in all_runs.records]

    def gap(self) -> str | None:
        """What is missing, in words, and which parts would make it."""
        if not (missing := [shard.number for shard in self.missing()]):
            return None
        shown = ", ".join(map(str, missing[:SHOWN_SHARDS])) + (" ..." if len(missing) > SHOWN_SHARDS else "")
        said = f"{self.target} lacks {len(missing)} of {len(self.plan.shards)} shards ({shown})"
        counts = self._ledger.parts_seen()
        if len(counts) == 1:
            count = counts.pop()
            parts = [f"--part {index}/{count}" for index in sorted({number % count for number in missing})]
            said += f", which belong to {', '.join(parts)}"
        return said

    def works(self) -> list[ShardWork]:
        """What is to be done."""
        plan = self.plan
        return [ShardWork(plan.name, plan.source, shard, self._options, self.target) for shard in self.missing()]

    def reject(self, number: int, rejects: list[Reject]) -> None:
        """Take note of rejects in a shard that is not finished yet."""
        if rejects:
            self._rejects_of_parts.setdefault(number, []).extend(rejects)

    def add(self, record: ShardRecord) -> None:
        """Record a shard that is in place."""
        self._rejects_of_parts.pop(record.number, None)
        self._ledger.append(record)

    @property
    def rejected(self) -> int:
        """The number of rejects so far."""
        return self._ledger.rejected + sum(map(len, self._rejects_of_parts.values()))

    @property
    def rejects(self) -> list[Reject]:
        """The rejects so far, in the order of their ids."""
        if self.is_finished:
            return read_rejects(self.target)
        found = [reject for rejects in self._rejects_of_parts.values() for reject in rejects]
        return sorted([*self._ledger.rejects, *found], key=lambda reject: reject.id)

    def list_rejects(self) -> str:
        """Write the rejects so far to a file for the user, and return its name."""
        return self.target.named(self._ledger.write_rejects(self.rejects, is_final=False))

    def close(self) -> None:
        """Save what is done, and remove what a run that ended early was about to write."""
        if not self.is_finished:
            self._ledger.close()
        self._ledger.sweep()

    def finish(self) -> None:
        """Write the manifest, which makes the set complete; with a share that is left to `merge`."""
        if self.is_finished or self._share:
            return
        self._ledger.remove_strays()
        self._ledger.write_rejects(self.rejects)
        self.target.write(MANIFEST, self._manifest().to_json())
        self.is_finished = True
        self._ledger.remove_all()

    def _planned(self) -> list[ShardPlan]:
        share = self._share
        return [shard for shard in self.plan.shards if share is None or share.has(shard.number)]

    def _manifest(self) -> Manifest:
        options, plan = self._options, self.plan
        shards = tuple(record.shard for _, record in sorted(self._ledger.records.items()) if record.shard)
        return Manifest(
            kind=plan.source.kind,
            components=component_extensions(plan.source.kind, options.encoding),
            encoding=options.encoding,
            image_size=None if options.size is None else (options.size, options.size),
            samples=sum(shard.samples for shard in shards),
            source=plan.identity,
            shards=shards,
        )

    def _still_rejected(self, record: ShardRecord) -> bool:
        """Whether the rejected items of a shard are still no good: one that was mended belongs into the shard."""
        shard = self.plan.shards[record.number]
        for reject in record.rejects:
            again = make_fragment(self.plan.source, WorkChunk(reject.id, [shard.item(reject.id)]), self._options)
            if again.rejects != [reject]:
                return False
        return True
