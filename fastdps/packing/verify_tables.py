"""Verify the tables of a shard set: the names of its samples, and the judgements of a judgement set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdps.errors import ShardError
from fastdps.shards.format import JUDGEMENTS, MANIFEST, SAMPLES, Manifest
from fastdps.shards.judgements import JudgementTable, find_faults, load_table, read_name_columns
from fastdps.shards.storage import Location


def check_tables(
    location: Location, manifest: Manifest, ids: NDArray[np.int64] | None
) -> Iterator[tuple[str, str, bool]]:
    """Verify the tables of a set.

    Args:
        location: The directory or URL of the set.
        manifest: The manifest of the set.
        ids: The sample ids in the indexes of its shards; None if not all of them can be read.

    Yields:
        For each problem the file, the problem, and False. Judgements that repeat or contradict others are not a
        problem; they come with True.
    """
    if manifest.format_version == 1:
        return
    if SAMPLES not in manifest.tables:
        yield MANIFEST, f"does not list {SAMPLES}", False
    else:
        for what in _check_samples(location, manifest, ids):
            yield SAMPLES, what, False
    if JUDGEMENTS not in manifest.tables:
        return
    try:
        table = load_table(location, manifest)
    except ShardError as error:
        yield JUDGEMENTS, str(error), False
        return
    known = np.concatenate([table.ref, table.a, table.b]) if ids is None else ids
    for which, what in find_faults(table, known):
        yield JUDGEMENTS, f"row {which[0] + 1} {what}{_more(len(which) - 1, 'rows')}", False
    for what in _notes(table):
        yield JUDGEMENTS, what, True


def _more(count: int, what: str) -> str:
    return f" (and {count:,} more {what})" if count else ""


def _check_samples(location: Location, manifest: Manifest, ids: NDArray[np.int64] | None) -> Iterator[str]:
    try:
        named, names = read_name_columns(location, manifest)
    except ShardError as error:
        yield str(error)
        return
    if len(set(names)) < len(names):
        name, count = Counter(names).most_common(1)[0]
        yield f"has the name {name!r} {count} times"
    if ids is None:
        return
    if len(unknown := np.setdiff1d(named, ids)):
        yield f"names the sample {unknown[0]}, which is not in the set{_more(len(unknown) - 1, 'samples')}"
    if len(without := np.setdiff1d(ids, named)):
        yield f"has no name of the sample {without[0]}{_more(len(without) - 1, 'samples')}"


def _notes(table: JudgementTable) -> Iterator[str]:
    """Yield how many judgements repeat or contradict another of the same judge, reference and pair."""
    if not len(table):
        return
    first, second = np.minimum(table.a, table.b), np.maximum(table.a, table.b)
    _, start, group = np.unique(
        np.stack([table.judge, table.ref, first, second]), axis=1, return_index=True, return_inverse=True
    )
    repeated = np.flatnonzero(start[group] != np.arange(len(table)))
    if len(repeated):
        yield _note(table, start[group], repeated, "repeat an earlier judgement of the same judge and images")
    towards_first = np.sign(table.votes_a - table.votes_b) * np.where(table.a == first, 1, -1)
    is_both = _any(group, towards_first > 0)[group] & _any(group, towards_first < 0)[group]
    opposite = np.flatnonzero(is_both & (towards_first != 0) & (towards_first != towards_first[start[group]]))
    if len(opposite):
        yield _note(table, start[group], opposite, "contradict an earlier judgement of the same judge and images")


def _any(group: NDArray[Any], which: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return for each group whether any of its members is selected."""
    return np.bincount(group, which, minlength=group.max() + 1) > 0


def _note(table: JudgementTable, first: NDArray[np.int64], found: NDArray[np.int64], what: str) -> str:
    rows = table.row[[first[found[0]], found[0]]].tolist()
    return f"note: {len(found):,} of {len(table):,} {what}, first lines {rows[0]} and {rows[1]} of the source"
