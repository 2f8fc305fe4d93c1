"""The tables of a shard set: the names of its samples, and the judgements of a judgement set.

A judgement says: to this judge, with reference `ref`, `votes_a` votes find `a` closer, and `votes_b` votes find `b`
closer. Images are named by their sample ids.

    samples.parquet       id, name
    judgements.parquet    ref, a, b, votes_a, votes_b, judge, row
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdps.errors import ShardError
from fastdps.shards.format import JUDGEMENTS, SAMPLES, Manifest, read_manifest
from fastdps.shards.storage import Location, LocationLike, locate
from fastdps.shards.tables import Column, Texts, Type, parquet_bytes, read_table

#: The largest sample id has 18 digits.
MAX_ID = 10**18 - 1

_SAMPLES: dict[str, Type] = {"id": "int64", "name": "text"}
_JUDGEMENTS: dict[str, Type] = {
    "ref": "int64",
    "a": "int64",
    "b": "int64",
    "votes_a": "float64",
    "votes_b": "float64",
    "judge": "text?",
    "row": "int64",
}


@dataclass(frozen=True)
class JudgementTable:
    """Judgements as columns of the same length.

    Attributes:
        ref: Sample ids of the references, int64.
        a: Sample ids of the first images, int64.
        b: Sample ids of the second images, int64.
        votes_a: The number of votes that find `a` closer to `ref`, float64. A share without a count is one vote,
            divided.
        votes_b: The number of votes that find `b` closer to `ref`, float64.
        judge: Index in `judges`, int64; -1 where the source does not name a judge.
        judges: The names of the judges, sorted.
        row: The line in the source file, from 1; in a Parquet file the row, from 1. int64.
    """

    ref: NDArray[np.int64]
    a: NDArray[np.int64]
    b: NDArray[np.int64]
    votes_a: NDArray[np.float64]
    votes_b: NDArray[np.float64]
    judge: NDArray[np.int64]
    judges: tuple[str, ...]
    row: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ref)

    def select(self, which: NDArray[Any]) -> JudgementTable:
        """Return some of the judgements.

        Args:
            which: A mask, or indices. `judges` stays the same.
        """
        columns = {name: getattr(self, name)[which] for name in _JUDGEMENTS}
        return JudgementTable(**columns, judges=self.judges)

    def to_bytes(self) -> bytes:
        """Return `judgements.parquet`, whose bytes depend on the content only."""
        columns: dict[str, Column] = {name: getattr(self, name) for name in _JUDGEMENTS}
        return parquet_bytes({**columns, "judge": Texts(self.judge, self.judges)}, _JUDGEMENTS)


def samples_bytes(ids: NDArray[np.int64], names: list[str]) -> bytes:
    """Return `samples.parquet`, whose bytes depend on the content only."""
    return parquet_bytes({"id": ids, "name": names}, _SAMPLES)


def read_judgements(location: LocationLike, manifest: Manifest | None = None) -> JudgementTable:
    """Read and check the judgements of a judgement set.

    Args:
        location: The directory or URL of the set.
        manifest: The manifest of the set, if it has been read.

    Returns:
        The judgements, in the order of the source file.

    Raises:
        ShardError: The set is not a judgement set, or its table is missing, damaged or has an invalid row.

    Example:
        >>> read_judgements("shards/materials/train").judges  # doctest: +SKIP
        ()
    """
    location = locate(location)
    manifest = manifest or read_manifest(location)
    if manifest.kind != "judgements":
        raise ShardError(
            f"{location} is a set of {manifest.kind}, without judgements. Pack them with `fastdps pack judgements`."
        )
    table = load_table(location, manifest)
    for which, what in find_faults(table, read_ids(location, manifest)):
        raise ShardError(
            f"{location / JUDGEMENTS}: row {which[0] + 1} {what}. Pack the set again with `fastdps pack judgements`."
        )
    return table


def load_table(location: Location, manifest: Manifest) -> JudgementTable:
    """Return the judgements of a set without checking their values. Raises `ShardError`."""
    return _table_of(read_table(location, JUDGEMENTS, manifest.tables[JUDGEMENTS], _JUDGEMENTS))


def _table_of(columns: dict[str, Any]) -> JudgementTable:
    """Return the table with its judges sorted, of those that occur."""
    texts = columns.pop("judge")
    found = sorted({texts.values[index] for index in np.unique(texts.indices).tolist() if index >= 0})
    places = {name: place for place, name in enumerate(found)}
    new = np.array([*(places.get(name, -1) for name in texts.values), -1], np.int64)  # the last one is for -1
    return JudgementTable(**columns, judge=new[texts.indices], judges=tuple(found))


def find_faults(table: JudgementTable, ids: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], str]]:
    """Return the faults of the judgements of a set with these sample ids, each with the indices of its judgements."""
    rules = [
        (~np.isin(column, ids), f"has a sample id as {name} that is not in the set")
        for name, column in (("ref", table.ref), ("a", table.a), ("b", table.b))
    ]
    rules += [
        ((table.ref == table.a) | (table.ref == table.b) | (table.a == table.b), "names an image twice"),
        (_invalid(table.votes_a) | _invalid(table.votes_b), "has votes that are negative, NaN or infinite"),
        (table.votes_a + table.votes_b <= 0, "has no votes"),
        (table.row < 1, "has an invalid line number"),
    ]
    return [(np.flatnonzero(wrong), what) for wrong, what in rules if wrong.any()]


def _invalid(votes: NDArray[np.float64]) -> NDArray[np.bool_]:
    return ~(np.isfinite(votes) & (votes >= 0))


def read_names(location: LocationLike, manifest: Manifest | None = None) -> dict[int, str]:
    """Read the name of each sample in its source, such as the path of a file.

    Args:
        location: The directory or URL of the set.
        manifest: The manifest of the set, if it has been read.

    Returns:
        The names by sample id, in ascending order; empty for sets of the format version 1, which do not have them.

    Raises:
        ShardError: The table is missing or damaged.

    Example:
        >>> read_names("shards/photos/train")[0]  # doctest: +SKIP
        'holiday/0001.jpg'
    """
    location = locate(location)
    ids, names = read_name_columns(location, manifest or read_manifest(location))
    return dict(zip(ids.tolist(), names, strict=True))


def read_name_columns(location: Location, manifest: Manifest) -> tuple[NDArray[np.int64], list[str]]:
    """Return the ids and the names of `samples.parquet`. Raises `ShardError`, also for ids that do not ascend."""
    if SAMPLES not in manifest.tables:
        return np.empty(0, np.int64), []
    columns = read_table(location, SAMPLES, manifest.tables[SAMPLES], _SAMPLES)
    return _ascending(columns["id"], location), columns["name"].to_list()


def read_ids(location: Location, manifest: Manifest) -> NDArray[np.int64]:
    """Return the sample ids of a set, ascending, from `samples.parquet`. Raises `ShardError`."""
    return _ascending(read_table(location, SAMPLES, manifest.tables[SAMPLES], {"id": "int64"})["id"], location)


def _ascending(ids: NDArray[np.int64], location: Location) -> NDArray[np.int64]:
    if len(ids) and (ids[0] < 0 or ids[-1] > MAX_ID or (ids[1:] <= ids[:-1]).any()):
        raise ShardError(f"{location / SAMPLES} has ids that do not ascend. Restore the file or pack the set again.")
    return ids
