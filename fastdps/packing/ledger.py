"""The manifest in progress: which shards of a set are finished, so that an interrupted run goes on there.

A run that packs all shards writes `progress.jsonl`, one that packs a part of them (see `Share`) a file of its own,
`progress-I-of-N.jsonl`. All are read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastdps.errors import ConfigError, ShardError
from fastdps.packing.fragment import Reject
from fastdps.packing.options import Share
from fastdps.packing.target import Directory, Target
from fastdps.runtime.files import PARTIAL
from fastdps.shards.format import MANIFEST, Shard

LEDGER = "progress.jsonl"
REJECTS = "rejects.jsonl"
#: Seconds between two copies of a ledger in object storage, which takes files as a whole only.
SAVE_EVERY_S = 10.0

_LEDGER_NAME = re.compile(r"progress(?:-\d+-of-(\d+))?\.jsonl")
_REJECTS_OF_PART = re.compile(r"rejects-\d+-of-\d+\.jsonl")
_SHARD_FILE = re.compile(r"shard-(\d+)\.(tar|idx)(\..*)?")


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard by its number; `shard` is None if all of its items were rejected."""

    number: int
    shard: Shard | None
    rejects: list[Reject] = field(default_factory=list)


class Ledger:
    """Finished shards of one set, one JSON line each behind a first line with the identity.

    `records` are those of a run's share, whoever has packed them.
    """

    def __init__(self, target: Target, identity: dict[str, Any], share: Share | None = None) -> None:
        self._target, self._identity, self._share = target, identity, share
        self._name = _of_share(LEDGER, share)
        self._saved_s, self._is_saved = 0.0, True
        self.records: dict[int, ShardRecord] = {}
        #: The number of rejected items in all records.
        self.rejected = 0

    def refuse_difference(self) -> None:
        """Raise `ConfigError` that names the difference when an earlier run had another source or other options."""
        for name in filter(is_ledger, self._target.sizes()):
            if lines := self._lines(name):
                try:
                    before = json.loads(lines[0])
                except ValueError as error:
                    raise self._damaged(name, error) from error
                refuse_difference(self._target, before, self._identity)

    def read(self, still_holds: Callable[[ShardRecord], bool] = lambda _: True) -> None:
        """Read what earlier runs finished.

        A shard counts as finished if its files are there in full and `still_holds` says so of its record. Raises
        `ShardError` when a ledger is damaged.
        """
        sizes = self._target.sizes()
        found: dict[int, list[ShardRecord]] = {}
        for name in filter(is_ledger, sorted(sizes)):
            for record in self._records_of(name):
                if self._is_own(record.number) and _is_whole(record, sizes):
                    known = found.setdefault(record.number, [])
                    known += [record] if record not in known else []
        for number in sorted(found):
            true = self._true_one(found[number])
            if true is not None and still_holds(true):
                self._add(true)

    def begin(self) -> None:
        """Write the file of this run, as a whole: a line that was cut off when the last one ended is gone."""
        self._target.write(self._name, "".join(_line(content) for content in self._contents()))
        self._saved_s, self._is_saved = time.monotonic(), True

    def append(self, record: ShardRecord) -> None:
        """Record a shard whose files are in place; in object storage that may take some seconds, or until `close`.

        Raises `FastDPSError` when the disk is full.
        """
        self._add(record)
        if isinstance(self._target, Directory):
            self._target.append(self._name, _line(dataclasses.asdict(record)))
        elif time.monotonic() - self._saved_s >= SAVE_EVERY_S:
            self.begin()
        else:
            self._is_saved = False

    def close(self) -> None:
        """Write what is not written yet."""
        if not self._is_saved:
            self.begin()

    def remove_all(self) -> None:
        """Remove the ledgers of all runs and what else is theirs, once there is a manifest."""
        for name in self._target.sizes():
            if is_ledger(name) or _REJECTS_OF_PART.fullmatch(name):
                self._target.remove(name)

    def remove_strays(self) -> None:
        """Remove shards that are in no record: of an earlier run, with items that are rejected by now."""
        known = {name for record in self.records.values() if (s := record.shard) for name in (s.name, s.index_name)}
        for name in self._target.sizes():
            if _SHARD_FILE.fullmatch(name) and name not in known:
                self._target.remove(name)

    def sweep(self) -> None:
        """Remove files that an earlier or this run was about to write, but none of a run beside this one."""
        for name in self._target.unfinished():
            shard = _SHARD_FILE.fullmatch(name)
            of_run = name.startswith((self._name, _of_share(REJECTS, self._share)))
            if self._share is None or (self._share.has(int(shard[1])) if shard else of_run):
                self._target.remove(name)

    def write_rejects(self, rejects: Iterable[Reject], *, is_final: bool = True) -> str:
        """Write `rejects.jsonl`, or the file of a part unless it `is_final`: a line each. Returns its name."""
        name = REJECTS if is_final else _of_share(REJECTS, self._share)
        self._target.write(name, "".join(_line(dataclasses.asdict(reject)) for reject in rejects))
        return name

    @property
    def rejects(self) -> list[Reject]:
        """All rejects, in the order of the shards."""
        return [reject for number in sorted(self.records) for reject in self.records[number].rejects]

    def parts_seen(self) -> set[int]:
        """Into how many parts the runs divided the set that have left ledgers."""
        names = (_LEDGER_NAME.fullmatch(name) for name in self._target.sizes())
        return {int(name[1]) for name in names if name and name[1]}

    def _add(self, record: ShardRecord) -> None:
        self.records[record.number] = record
        self.rejected += len(record.rejects)

    def _is_own(self, number: int) -> bool:
        return self._share is None or self._share.has(number)

    def _true_one(self, records: list[ShardRecord]) -> ShardRecord | None:
        """The record that the files agree with; there are several if an item was mended between two runs."""
        if len(records) == 1:
            return records[0]
        for record in records:
            if shard := record.shard:
                with self._target.local(shard.name, shard.bytes) as path, path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256:
                        return record
        return None

    def _records_of(self, name: str) -> list[ShardRecord]:
        try:
            return [_parse(json.loads(line)) for line in self._lines(name)[1:]]
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged(name, error) from error

    def _lines(self, name: str) -> list[str]:
        """The complete lines of a file; the last one may have been cut off."""
        return (self._target.read(name) or b"").decode(errors="replace").split("\n")[:-1]

    def _contents(self) -> Iterable[dict[str, Any]]:
        yield self._identity
        for number in sorted(self.records):
            yield dataclasses.asdict(self.records[number])

    def _damaged(self, name: str, error: Exception) -> ShardError:
        return ShardError(f"{self._target.named(name)} is damaged: {error}. Pass --overwrite to start anew.")


def is_ledger(name: str) -> bool:
    """Whether a file has the name of a ledger."""
    return _LEDGER_NAME.fullmatch(name) is not None


def read_rejects(target: Target) -> list[Reject]:
    """Read `rejects.jsonl`. Raises `ShardError` when it is not there or damaged."""
    try:
        content = target.read(REJECTS)
        if content is None:
            raise ValueError("it is not there")
        return [Reject(**json.loads(line)) for line in content.decode().split("\n")[:-1]]
    except (OSError, ValueError, TypeError) as error:
        raise ShardError(
            f"{target.named(REJECTS)} cannot be read: {error}. Restore it or pack with --overwrite."
        ) from None


def clear_set(target: Target) -> None:
    """Remove a set, or what is there of one, and nothing else; the manifest first, without which it is no set."""
    for name in (MANIFEST, *target.sizes(), *target.unfinished()):
        own = name in (MANIFEST, REJECTS) or _REJECTS_OF_PART.fullmatch(name) or is_ledger(name)
        if own or _SHARD_FILE.fullmatch(name) or name.endswith(PARTIAL):
            target.remove(name)
    target.clear()


def refuse_difference(target: Target, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `ConfigError` that names what differs between two runs into the same directory."""
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if differing:
        changes = "; ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in differing)
        raise ConfigError(
            f"{target} was started with another source or other options: {changes}. Use the same to go on, choose "
            "another --out, or pass --overwrite to start anew."
        )


def _of_share(name: str, share: Share | None) -> str:
    return name if share is None else name.replace(".", f"{share.suffix}.")


def _is_whole(record: ShardRecord, sizes: Mapping[str, int]) -> bool:
    shard = record.shard
    return shard is None or (sizes.get(shard.name) == shard.bytes and shard.index_name in sizes)


def _parse(content: dict[str, Any]) -> ShardRecord:
    shard = content["shard"]
    return ShardRecord(content["number"], shard and Shard(**shard), [Reject(**reject) for reject in content["rejects"]])


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"
