"""The record of finished shards of an unfinished set, from which an interrupted run resumes.

A run that packs all shards writes `progress.jsonl`. A run that packs a share of them (see `Share`) writes
`progress-I-of-N.jsonl`. Every run reads all of these files.
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
from fastdps.runtime.json_files import Maybe, check, parse_json
from fastdps.shards.format import JUDGEMENTS, MANIFEST, SAMPLES, Shard

LEDGER = "progress.jsonl"
REJECTS = "rejects.jsonl"
#: The rows of a judgement file that give no judgement: {"row", "reason"}, one per line.
REJECTED_ROWS = "rejected_rows.jsonl"
#: Seconds between two uploads of a ledger to object storage, which cannot append to files.
SAVE_EVERY_S = 10.0

_RECORD = {
    "number": int,
    "shard": Maybe({"name": str, "samples": int, "bytes": int, "sha256": str}),
    "rejects": [{"id": int, "item": str, "reason": str}],
}
_LEDGER_NAME = re.compile(r"progress(?:-\d+-of-(\d+))?\.jsonl")
_PART_REJECTS = re.compile(r"rejects-\d+-of-\d+\.jsonl")
_OWN_FILES = {MANIFEST, REJECTS, REJECTED_ROWS, SAMPLES, JUDGEMENTS}
_SHARD_FILE = re.compile(r"shard-(\d+)\.(tar|idx)(\..*)?")


@dataclass(frozen=True)
class ShardRecord:
    """The record of one finished shard.

    Attributes:
        number: The number of the shard in its set.
        shard: The entry for the manifest; None if all items of the shard were rejected.
        rejects: The rejected items of the shard.
    """

    number: int
    shard: Shard | None
    rejects: list[Reject] = field(default_factory=list)


class Ledger:
    """The finished shards of one set. Its file has the identity of the set in the first line, then a line per shard.

    Attributes:
        records: The finished shards of this run's share by number, including those that other runs packed.
        rejected: The number of rejected items in `records`.
    """

    def __init__(self, target: Target, identity: dict[str, Any], share: Share | None = None) -> None:
        self._target, self._identity, self._share = target, identity, share
        self._name = _share_name(LEDGER, share)
        self._saved_s, self._is_saved = 0.0, True
        self.records: dict[int, ShardRecord] = {}
        self.rejected = 0

    def require_same_identity(self) -> None:
        """Raise `ConfigError` naming the difference when an earlier run had another source or other options."""
        for name in filter(is_ledger, self._target.sizes()):
            if lines := self._lines(name):
                try:
                    before = parse_json(lines[0])
                    check(before, {})
                except ValueError as error:
                    raise self._damaged(name, error) from error
                require_same_identity(self._target, before, self._identity)

    def read(self, is_still_valid: Callable[[ShardRecord], bool] = lambda _: True) -> None:
        """Read the records of earlier runs.

        Args:
            is_still_valid: Returns False for a record whose shard must be packed again. A record whose files are
                missing or have another size is dropped in any case.

        Raises:
            ShardError: A ledger is damaged.
        """
        sizes = self._target.sizes()
        found: dict[int, list[ShardRecord]] = {}
        for name in filter(is_ledger, sorted(sizes)):
            for record in self._records_of(name):
                if self._is_own(record.number) and _is_complete(record, sizes) and is_still_valid(record):
                    known = found.setdefault(record.number, [])
                    known += [record] if record not in known else []
        for number in sorted(found):
            matching = self._matching_record(found[number])
            if matching is not None:
                self._add(matching)

    def begin(self) -> None:
        """Write the complete file of this run. This drops a truncated last line of an interrupted run."""
        self._target.write(self._name, "".join(_line(content) for content in self._contents()))
        self._saved_s, self._is_saved = time.monotonic(), True

    def append(self, record: ShardRecord) -> None:
        """Record a shard whose files are in place.

        In object storage, a record is uploaded at once only if the last upload is `SAVE_EVERY_S` seconds ago; otherwise
        with a later record, or by `close`.

        Raises:
            FastDPSError: The disk is full.
        """
        self._add(record)
        if isinstance(self._target, Directory):
            self._target.append(self._name, _line(dataclasses.asdict(record)))
        elif time.monotonic() - self._saved_s >= SAVE_EVERY_S:
            self.begin()
        else:
            self._is_saved = False

    def close(self) -> None:
        """Write the records that are not written yet."""
        if not self._is_saved:
            self.begin()

    def remove_all(self) -> None:
        """Remove the ledgers and reject lists of all runs. The manifest replaces them."""
        for name in self._target.sizes():
            if is_ledger(name) or _PART_REJECTS.fullmatch(name):
                self._target.remove(name)

    def remove_unrecorded(self) -> None:
        """Remove shards without a record: an earlier run packed items in them that are now rejected."""
        known = {name for record in self.records.values() if (s := record.shard) for name in (s.name, s.index_name)}
        for name in self._target.sizes():
            if _SHARD_FILE.fullmatch(name) and name not in known:
                self._target.remove(name)

    def remove_unfinished(self) -> None:
        """Remove unfinished files of this and earlier runs, except those of concurrent runs with other shares."""
        for name in self._target.unfinished():
            shard = _SHARD_FILE.fullmatch(name)
            of_run = name.startswith((self._name, _share_name(REJECTS, self._share)))
            if self._share is None or (self._share.has(int(shard[1])) if shard else of_run):
                self._target.remove(name)

    def write_rejects(self, rejects: Iterable[Reject], *, is_final: bool = True) -> str:
        """Write rejected items to `rejects.jsonl`, or to the file of the share unless `is_final`. Return its name."""
        name = REJECTS if is_final else _share_name(REJECTS, self._share)
        self._target.write(name, "".join(_line(dataclasses.asdict(reject)) for reject in rejects))
        return name

    @property
    def rejects(self) -> list[Reject]:
        """All rejected items, in the order of the shards."""
        return [reject for number in sorted(self.records) for reject in self.records[number].rejects]

    def part_counts(self) -> set[int]:
        """Return the numbers of parts into which earlier runs divided the set."""
        names = (_LEDGER_NAME.fullmatch(name) for name in self._target.sizes())
        return {int(name[1]) for name in names if name and name[1]}

    def _add(self, record: ShardRecord) -> None:
        self.records[record.number] = record
        self.rejected += len(record.rejects)

    def _is_own(self, number: int) -> bool:
        return self._share is None or self._share.has(number)

    def _matching_record(self, records: list[ShardRecord]) -> ShardRecord | None:
        """Return the record that the files match. There are several if an item was repaired between two runs."""
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
            return [_parse(parse_json(line)) for line in self._lines(name)[1:]]
        except (ValueError, TypeError) as error:
            raise self._damaged(name, error) from error

    def _lines(self, name: str) -> list[str]:
        """Return the complete lines of a file. The last line may be truncated."""
        return (self._target.read(name) or b"").decode(errors="replace").split("\n")[:-1]

    def _contents(self) -> Iterable[dict[str, Any]]:
        yield self._identity
        for number in sorted(self.records):
            yield dataclasses.asdict(self.records[number])

    def _damaged(self, name: str, error: Exception) -> ShardError:
        return ShardError(
            f"{self._target.display_name(name)} is damaged: {error}. Pass --overwrite to start from scratch."
        )


def is_ledger(name: str) -> bool:
    """Return True if a file has the name of a ledger."""
    return _LEDGER_NAME.fullmatch(name) is not None


def read_rejects(target: Target) -> list[Reject]:
    """Read `rejects.jsonl`. Raises `ShardError` when it is missing or damaged."""
    try:
        content = target.read(REJECTS)
        if content is None:
            raise ValueError("it is missing")
        return [Reject(**json.loads(line)) for line in content.decode().split("\n")[:-1]]
    except (OSError, ValueError, TypeError) as error:
        raise ShardError(
            f"{target.display_name(REJECTS)} cannot be read: {error}. Restore it or pack with --overwrite."
        ) from None


def clear_set(target: Target) -> None:
    """Remove the files of a set, finished or not, and no other files.

    The manifest goes first, so that an interruption leaves no set that looks complete.
    """
    for name in (MANIFEST, *target.sizes(), *target.unfinished()):
        own = name in _OWN_FILES or _PART_REJECTS.fullmatch(name) or is_ledger(name)
        if own or _SHARD_FILE.fullmatch(name) or name.endswith(PARTIAL):
            target.remove(name)
    target.clear()


def require_same_identity(target: Target, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare the identities of two runs into the same directory.

    Args:
        target: The place of the set, for the message.
        before: The identity of the earlier run.
        now: The identity of this run.

    Raises:
        ConfigError: They differ; the message names each difference.
    """
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if differing:
        changes = "; ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in differing)
        raise ConfigError(
            f"{target} was started with another source or other options: {changes}. Use the same to resume, choose "
            "another --out, or pass --overwrite to start from scratch."
        )


def _share_name(name: str, share: Share | None) -> str:
    return name if share is None else name.replace(".", f"{share.suffix}.")


def _is_complete(record: ShardRecord, sizes: Mapping[str, int]) -> bool:
    shard = record.shard
    return shard is None or (sizes.get(shard.name) == shard.bytes and shard.index_name in sizes)


def _parse(content: Any) -> ShardRecord:
    """Return the record of a parsed line. Raises `ValueError` or, for unknown keys, `TypeError`."""
    check(content, _RECORD)
    shard = content["shard"]
    return ShardRecord(content["number"], shard and Shard(**shard), [Reject(**reject) for reject in content["rejects"]])


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"
