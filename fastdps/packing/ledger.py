"""The manifest in progress: which shards of a set are finished, so that an interrupted run goes on there."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastdps.errors import ConfigError, ShardError
from fastdps.files import PARTIAL, flush, write_whole, writing
from fastdps.packing.fragment import Reject
from fastdps.shards import MANIFEST, Shard

LEDGER = "progress.jsonl"
REJECTS = "rejects.jsonl"
#: Every file of a set that is neither its manifest nor one of the two above.
_SHARD_FILES = ("shard-*.tar", "shard-*.idx", f"*{PARTIAL}")


@dataclass(frozen=True)
class Entry:
    """One finished shard by its number; `shard` is None if all of its items were rejected."""

    number: int
    shard: Shard | None
    rejects: list[Reject] = field(default_factory=list)


class Ledger:
    """Finished shards of one set, one JSON line each behind a first line with the identity; only appended to."""

    def __init__(self, directory: Path, identity: dict[str, Any]) -> None:
        self._path = directory / LEDGER
        self._directory = directory
        self._identity = identity
        self.entries: dict[int, Entry] = {}

    def open(self, still_holds: Callable[[Entry], bool]) -> None:
        """Read what an earlier run finished, and remove what it left unfinished.

        A shard counts as finished if its files are there in full and `still_holds` says so of its entry. Raises
        `ShardError` when the file is damaged.
        """
        with writing(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
        for line in self._lines()[1:]:
            try:
                entry = _parse(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise self._damaged(error) from error
            if self._is_whole(entry) and still_holds(entry):
                self.entries[entry.number] = entry
        known = {name for entry in self.entries.values() if (s := entry.shard) for name in (s.name, s.index_name)}
        for path in _shard_files(self._directory):
            if path.name not in known:
                path.unlink()
        # Rewritten as a whole: a line that was cut off when the run ended is gone.
        write_whole(self._path, "".join(_line(content) for content in self._contents()))

    def refuse_difference(self) -> None:
        """Raise `ConfigError` that names the difference when the earlier run had another source or other options."""
        if lines := self._lines():
            try:
                before = json.loads(lines[0])
            except ValueError as error:
                raise self._damaged(error) from error
            refuse_difference(self._directory, before, self._identity)

    def append(self, entry: Entry) -> None:
        """Record a shard whose files are in place. Raises `FastDPSError` when the disk is full."""
        with writing(self._path), self._path.open("ab") as file:
            file.write(_line(dataclasses.asdict(entry)).encode())
            flush(file)
        self.entries[entry.number] = entry

    def remove(self) -> None:
        """Remove the ledger, once there is a manifest."""
        self._path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove files that nobody writes any more."""
        for path in self._directory.glob(f"*{PARTIAL}"):
            path.unlink(missing_ok=True)

    @property
    def rejects(self) -> list[Reject]:
        """All rejects, in the order of the shards."""
        return [reject for number in sorted(self.entries) for reject in self.entries[number].rejects]

    def _lines(self) -> list[str]:
        """The complete lines of the file; the last one may have been cut off."""
        try:
            return self._path.read_bytes().decode(errors="replace").split("\n")[:-1]
        except FileNotFoundError:
            return []

    def _is_whole(self, entry: Entry) -> bool:
        if entry.shard is None:
            return True
        tar, index = self._directory / entry.shard.name, self._directory / entry.shard.index_name
        return tar.is_file() and tar.stat().st_size == entry.shard.bytes and index.is_file()

    def _contents(self) -> Iterable[dict[str, Any]]:
        yield self._identity
        for number in sorted(self.entries):
            yield dataclasses.asdict(self.entries[number])

    def _damaged(self, error: Exception) -> ShardError:
        return ShardError(f"{self._path} is damaged: {error}. Pass --overwrite to start anew.")


def write_rejects(directory: Path, rejects: Iterable[Reject]) -> None:
    """Write `rejects.jsonl`: one line for each reject, with its sample id, item and reason."""
    write_whole(directory / REJECTS, "".join(_line(dataclasses.asdict(reject)) for reject in rejects))


def read_rejects(directory: Path) -> list[Reject]:
    """Read `rejects.jsonl`. Raises `ShardError` when it is not there or damaged."""
    try:
        lines = (directory / REJECTS).read_text(encoding="utf-8").split("\n")[:-1]
        return [Reject(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise ShardError(
            f"{directory / REJECTS} cannot be read: {error}. Restore it or pack with --overwrite."
        ) from None


def clear_set(directory: Path) -> None:
    """Remove a set, or what is there of one, and nothing else."""
    for path in (*(directory / name for name in (MANIFEST, LEDGER, REJECTS)), *_shard_files(directory)):
        path.unlink(missing_ok=True)
    if directory.is_dir() and not os.listdir(directory):
        directory.rmdir()


def refuse_difference(directory: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `ConfigError` that names what differs between two runs into the same directory."""
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if differing:
        changes = "; ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in differing)
        raise ConfigError(
            f"{directory} was started with another source or other options: {changes}. Use the same to go on, choose "
            "another --out, or pass --overwrite to start anew."
        )


def _shard_files(directory: Path) -> list[Path]:
    return [path for pattern in _SHARD_FILES for path in directory.glob(pattern)]


def _parse(content: dict[str, Any]) -> Entry:
    shard = content["shard"]
    return Entry(content["number"], shard and Shard(**shard), [Reject(**reject) for reject in content["rejects"]])


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"
