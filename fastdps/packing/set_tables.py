"""The tables of a set: the names of its samples and, of a judgement set, the judgements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fastdps.packing.fragment import Reject
from fastdps.packing.plan import SetPlan
from fastdps.packing.sources.judged_rows import JudgedRows, RejectedRow
from fastdps.shards.format import JUDGEMENTS, SAMPLES, Table
from fastdps.shards.judgements import samples_bytes
from fastdps.shards.tables import table_of


class SetTable(NamedTuple):
    """A table: its entry in the manifest and its content."""

    entry: Table
    content: bytes


class SetTables(NamedTuple):
    """The tables of a set by file name, and for a judgement set what became of the rows of its source."""

    tables: dict[str, SetTable]
    result: dict[str, int]


def set_tables(plan: SetPlan, rejects: Sequence[Reject]) -> SetTables:
    """Return the tables of a packed set, whose bytes depend on the plan and the rejected items only."""
    rejected = {reject.id for reject in rejects}
    name = plan.source.name
    packed = [(i, name(shard.item(i))) for shard in plan.shards for i in shard.ids if i not in rejected]
    names = [name for _, name in packed]
    tables = {SAMPLES: _table(len(names), samples_bytes(np.array([i for i, _ in packed], np.int64), names))}
    judged = plan.source.judgements()
    if judged is None:
        return SetTables(tables, {})
    table = judged.with_ids({name: sample_id for sample_id, name in packed})
    tables[JUDGEMENTS] = _table(len(table), table.to_bytes())
    lost = len(lost_rows(judged, rejects))
    return SetTables(tables, {"judgements": len(table), "judges": len(table.judges), "lost_rows": lost})


def _table(rows: int, content: bytes) -> SetTable:
    return SetTable(table_of(content, rows), content)


def lost_rows(judged: JudgedRows, rejects: Iterable[Reject]) -> list[RejectedRow]:
    """Return the rows that are lost because an image of theirs was rejected, in the order of the file."""
    reasons = {reject.item: reject.reason for reject in rejects}
    if not reasons:
        return []
    is_bad = np.array([image in reasons for image in judged.images])
    table, found = judged.table, {}
    for number in np.flatnonzero(is_bad[table.ref] | is_bad[table.a] | is_bad[table.b]).tolist():
        bad = [judged.images[column[number]] for column in (table.ref, table.a, table.b) if is_bad[column[number]]]
        row = RejectedRow(int(table.row[number]), f"its image {bad[0]} was rejected: {reasons[bad[0]]}")
        found[row.row, int(table.judge[number])] = row
    return list(found.values())
