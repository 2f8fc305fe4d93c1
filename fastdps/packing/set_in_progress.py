"""One set of a packing run: which of its shards are packed, which are missing, and its manifest once it is complete."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from fastdps.errors import FastDPSError
from fastdps.packing.fragment import Reject, make_fragment
from fastdps.packing.ledger import REJECTED_ROWS, Ledger, ShardRecord, read_rejects, require_same_identity
from fastdps.packing.options import PackOptions, Share
from fastdps.packing.plan import SetPlan, ShardPlan, WorkChunk
from fastdps.packing.set_tables import lost_rows, set_tables
from fastdps.packing.sources.judged_rows import RejectedRow
from fastdps.packing.target import Target
from fastdps.packing.work import ShardWork
from fastdps.shards.format import (
    MANIFEST,
    Manifest,
    Table,
    component_extensions,
    read_manifest,
)

#: The key of the manifest's `source` for what became of the rows of a judgement file; not a part of the identity.
RESULT = "result"
#: Rejected rows that a message names.
SHOWN_ROWS = 3
#: Missing shards that the message of a failed merge names.
SHOWN_SHARDS = 10


class SetInProgress:
    """One shard set of a packing run: its finished and missing shards.

    Attributes:
        plan: The content of the set.
        target: The place of the set.
        is_finished: Whether the set has a manifest, which makes it complete.
    """

    def __init__(self, plan: SetPlan, target: Target, options: PackOptions, share: Share | None = None) -> None:
        self.plan, self.target, self._options, self._share = plan, target, options, share
        self._ledger = Ledger(target, plan.identity, share)
        self._open_rejects: dict[int, list[Reject]] = {}
        self.is_finished = target.size(MANIFEST) is not None

    def require_same_identity(self) -> None:
        """Raise `ConfigError` when the target holds a set, or part of one, with another identity."""
        if self.is_finished:
            before = {key: value for key, value in read_manifest(self.target.location).source.items() if key != RESULT}
            require_same_identity(self.target, before, self.plan.identity)
        else:
            self._ledger.require_same_identity()

    def open(self) -> None:
        """Read the finished shards, and remove unfinished files of an earlier run."""
        self._ledger.remove_unfinished()
        if self.is_finished:
            self._ledger.remove_all()
        else:
            self._ledger.read(lambda record: self._fits(record) and self._rejects_unchanged(record))
            if self._own_shards():
                self._ledger.begin()

    def read_progress(self) -> None:
        """Read the finished shards of all runs, without changing any file."""
        if not self.is_finished:
            self._ledger.read(self._fits)

    @property
    def planned(self) -> int:
        """The number of items in the shards of this run, finished or not."""
        return sum(len(shard.items) for shard in self._own_shards())

    @property
    def done(self) -> int:
        """The number of items in the finished shards of this run."""
        return self.planned - sum(len(shard.items) for shard in self.missing())

    def missing(self) -> list[ShardPlan]:
        """Return the shards that this run has to pack."""
        records = self._ledger.records
        return [] if self.is_finished else [shard for shard in self._own_shards() if shard.number not in records]

    def missing_in_all_runs(self) -> list[int]:
        """Return the numbers of the shards that no run has packed."""
        all_runs = Ledger(self.target, self.plan.identity)
        all_runs.read()
        return [shard.number for shard in self.plan.shards if shard.number not in all_runs.records]

    def describe_missing(self) -> str | None:
        """Return a sentence that names the missing shards and the parts that pack them, or None if none is missing."""
        if not (missing := [shard.number for shard in self.missing()]):
            return None
        shown = ", ".join(map(str, missing[:SHOWN_SHARDS])) + (" ..." if len(missing) > SHOWN_SHARDS else "")
        text = f"{self.target} lacks {len(missing)} of {len(self.plan.shards)} shards ({shown})"
        counts = self._ledger.part_counts()
        if len(counts) == 1:
            count = counts.pop()
            parts = [f"--part {index}/{count}" for index in sorted({number % count for number in missing})]
            text += f", which belong to {', '.join(parts)}"
        return text

    def missing_work(self) -> list[ShardWork]:
        """Return the work of packing the missing shards."""
        plan = self.plan
        return [ShardWork(plan.name, plan.source, shard, self._options, self.target) for shard in self.missing()]

    def reject(self, number: int, rejects: list[Reject]) -> None:
        """Note rejected items of a shard that is not finished yet."""
        if rejects:
            self._open_rejects.setdefault(number, []).extend(rejects)

    def add(self, record: ShardRecord) -> None:
        """Record a shard whose files are in place."""
        self._open_rejects.pop(record.number, None)
        self._ledger.append(record)

    @property
    def rejected(self) -> int:
        """The number of rejected items so far."""
        return self._ledger.rejected + sum(map(len, self._open_rejects.values()))

    @property
    def rejects(self) -> list[Reject]:
        """The rejected items so far, in the order of their sample ids."""
        if self.is_finished:
            return read_rejects(self.target)
        found = [reject for rejects in self._open_rejects.values() for reject in rejects]
        return sorted([*self._ledger.rejects, *found], key=lambda reject: reject.id)

    def list_rejects(self) -> str:
        """Write the rejected items so far to a file for the user, and return its path or URL."""
        return self.target.display_name(self._ledger.write_rejects(self.rejects, is_final=False))

    def close(self) -> None:
        """Save the progress, and remove unfinished files."""
        if not self.is_finished:
            self._ledger.close()
        self._ledger.remove_unfinished()

    def finish(self) -> None:
        """Write the manifest, which completes the set. With a share, `merge` does that instead."""
        if self.is_finished or self._share:
            return
        self._ledger.remove_unrecorded()
        rejects = self.rejects
        self._ledger.write_rejects(rejects)
        tables, result = set_tables(self.plan, rejects)
        for name, table in tables.items():
            self.target.write_bytes(name, table.content)
        if self.plan.source.judgements() is not None:
            self.list_rejected_rows()
        entries = {name: table.entry for name, table in tables.items()}
        self.target.write(MANIFEST, self._manifest(entries, result).to_json())
        self.is_finished = True
        self._ledger.remove_all()

    def _own_shards(self) -> list[ShardPlan]:
        share = self._share
        return [shard for shard in self.plan.shards if share is None or share.has(shard.number)]

    def lost_rows(self) -> list[RejectedRow]:
        """Return the rows of a judgement file that are lost with a rejected image so far."""
        judged = self.plan.source.judgements()
        return [] if judged is None else lost_rows(judged, self.rejects)

    def list_rejected_rows(self) -> str:
        """Write the rows of a judgement file that give no judgement, and return the path or URL of the list."""
        judged = self.plan.source.judgements()
        if judged and not self.is_finished:
            rows = sorted([*judged.rejected, *self.lost_rows()], key=lambda row: row.row)
            lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
            self.target.write(REJECTED_ROWS, "".join(lines))
        return self.target.display_name(REJECTED_ROWS)

    def _manifest(self, tables: Mapping[str, Table], result: Mapping[str, int]) -> Manifest:
        options, plan = self._options, self.plan
        shards = tuple(record.shard for _, record in sorted(self._ledger.records.items()) if record.shard)
        return Manifest(
            kind=plan.source.kind,
            components=component_extensions(plan.source.kind, options.encoding),
            encoding=options.encoding,
            image_size=None if options.size is None else (options.size, options.size),
            samples=sum(shard.samples for shard in shards),
            source={**plan.identity, RESULT: result} if result else plan.identity,
            shards=shards,
            tables=tables,
        )

    def _fits(self, record: ShardRecord) -> bool:
        """Return True if a record agrees with the plan and its files with the record. Others are packed again."""
        if not 0 <= record.number < len(self.plan.shards):
            return False
        plan, shard = self.plan.shards[record.number], record.shard
        rejected = {reject.id: reject.item for reject in record.rejects}
        if len(rejected) < len(record.rejects) or not set(rejected) <= set(plan.ids):
            return False
        if any(self.plan.source.name(plan.item(sample_id)) != item for sample_id, item in rejected.items()):
            return False
        samples = len(plan.items) - len(rejected)
        if shard is None:
            return samples == 0
        return shard.name == plan.name and shard.samples == samples > 0 and self.target.holds(shard)

    def _rejects_unchanged(self, record: ShardRecord) -> bool:
        """Return True if all rejected items of a shard are still unreadable. A repaired item belongs in the shard."""
        shard = self.plan.shards[record.number]
        for reject in record.rejects:
            again = make_fragment(self.plan.source, WorkChunk(reject.id, [shard.item(reject.id)]), self._options)
            if again.rejects != [reject]:
                return False
        return True


def refuse_rows(sets: Sequence[SetInProgress], options: PackOptions) -> None:
    """Raise `FastDPSError` when more rows of a judgement file give no judgement than allowed."""
    judged = [(one, rows) for one in sets if (rows := one.plan.source.judgements())]
    if not judged or all(one.is_finished for one in sets):
        return
    first = judged[0][1]
    rejected = sorted([*first.rejected, *(row for one, _ in judged for row in one.lost_rows())], key=lambda r: r.row)
    if len(rejected) <= (limit := options.allowed_rejects(first.rows)):
        return
    files = [one.list_rejected_rows() for one, _ in judged]
    shown = "; ".join(f"line {row.row}: {row.reason}" for row in rejected[:SHOWN_ROWS])
    more = " ..." if len(rejected) > SHOWN_ROWS else ""
    raise FastDPSError(
        f"{len(rejected):,} of {first.rows:,} rows were rejected and at most {limit:,} may be: {shown}{more}. "
        f"All are listed in {', '.join(files)}. Repair them, or allow more with --max-rejects, and run the same "
        "command again. A changed file starts from scratch with --overwrite."
    )
